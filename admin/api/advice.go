package api

// Advice is the part of an answer that says what should be known of a change that was made.
type Advice struct {
	// Warnings are sentences; there are none where all is well.
	Warnings []string `json:"warnings,omitempty"`
}

// Advised gives the warnings of an answer that has an Advice in it.
func (a *Advice) Advised() []string { return a.Warnings }

// Add adds a warning.
func (a *Advice) Add(text string) { a.Warnings = append(a.Warnings, text) }
