package api

// Warned is the part of an answer that warns of a change that was made.
type Warned struct {
	// Warnings are sentences; there are none where all is well.
	Warnings []string `json:"warnings,omitempty"`
}

// AllWarnings returns the warnings of an answer that has a Warned in it.
func (w *Warned) AllWarnings() []string { return w.Warnings }
