package api

import "fmt"

// Error is a refusal of the API: the HTTP status and, as the JSON field "error", why, in words.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
}

func (e *Error) Error() string { return e.Message }

// Refuse makes the refusal that a Control function returns when 409, a conflict, is not the status that says
// it best.
func Refuse(status int, format string, args ...any) *Error {
	return &Error{Status: status, Message: fmt.Sprintf(format, args...)}
}
