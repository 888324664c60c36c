package admin

import (
	"errors"
	"fmt"
)

// advisory is an error of a change that was made.
type advisory struct{ text string }

func (a *advisory) Error() string { return a.text }

// Advise makes what a Control function returns instead of nil for a change that was made, when the caller should be told
// something. It is for those of backends, splits and limits.
func Advise(format string, args ...any) error { return &advisory{fmt.Sprintf(format, args...)} }

// advised puts the advice that err is into the answer, and gives every other error back.
func advised(answer interface{ Add(string) }, err error) error {
	var a *advisory
	if errors.As(err, &a) {
		answer.Add(a.text)
		return nil
	}
	return err
}
