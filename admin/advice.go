package admin

import (
	"errors"
	"fmt"
)

// Advice is the part of an answer that says what should be known of a change that was made.
type Advice struct {
	// Warnings are sentences; there are none where all is well.
	Warnings []string `json:"warnings,omitempty"`
}

// Advised gives the warnings of an answer that has an Advice in it.
func (a *Advice) Advised() []string { return a.Warnings }

func (a *Advice) add(text string) { a.Warnings = append(a.Warnings, text) }

// advisory is an error of a change that was made.
type advisory struct{ text string }

func (a *advisory) Error() string { return a.text }

// Advise makes what a Control function returns instead of nil for a change that was made, when the caller should be told
// something. It is for those of backends, splits and limits.
func Advise(format string, args ...any) error { return &advisory{fmt.Sprintf(format, args...)} }

// advised puts the advice that err is into the answer, and gives every other error back.
func advised(answer interface{ add(string) }, err error) error {
	var a *advisory
	if errors.As(err, &a) {
		answer.add(a.text)
		return nil
	}
	return err
}
