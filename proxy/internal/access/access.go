// Package access decides which clients a listener lets in: address lists, rates, and limits for each source
// address.
//
// It keeps no goroutine and reads no clock: the caller passes the time, counted from a moment of its own.
// Everything here is safe for concurrent use by all event loops. It knows nothing of sockets and sessions.
package access
