package api

// CauseNone is the Cause of a backend with which nothing is wrong.
const CauseNone = "none"

// Diagnosis is what is wrong with one backend, or with a slot whose worker has none.
type Diagnosis struct {
	// Subject is POOL/BACKEND, or POOL/SLOT.
	Subject string `json:"subject"`
	// Cause names the cause, as docs/troubleshooting.md has it, or CauseNone.
	Cause string `json:"cause"`
	// Headline says the cause in words, Do what to do about it.
	Headline string   `json:"headline"`
	Do       []string `json:"do"`
	// Also are further causes, in words.
	Also []string `json:"also"`
	// Facts are what the diagnosis rests on.
	Facts []Fact `json:"facts"`
	// History is the last changes of the backend and its slot, the oldest first.
	History []Event `json:"history"`
}

// Fact is one thing that is known.
type Fact struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// PoolDiagnosis is what is wrong with a pool.
type PoolDiagnosis struct {
	Pool string `json:"pool"`
	// Headline says in words how many of its backends take connections, and what is wrong with the pool as a
	// whole.
	Headline string `json:"headline"`
	// Backends are those with a cause, then the others.
	Backends []Diagnosis `json:"backends"`
}
