package logs

// AccessField explains a field of the access log, for docs/access-log.md.
type AccessField struct {
	Text  string // its name in a line of text; empty where that has none
	JSON  string // its key in JSON; empty where that has none
	Means string // what it is, in Markdown
}

// AccessFields are the fields in the order of a line of text. A test holds them against Entry.
var AccessFields = []AccessField{
	{"client", "client", "Address and port of the client, `[address]:port` for IPv6. For one on a Unix socket, `unix:0`, and in JSON `unix`. Behind a trusted PROXY header, the client that it names."},
	{"[time]", "time", "When lb accepted the client, in local time."},
	{"listener", "listener", "The listener that accepted it."},
	{"pool", "pool", "The pool that the listener gave it to; `-` or null when it was refused before one was chosen."},
	{"backend", "backend", "The backend that it was carried to, or tried at last; `<NOSRV>` or null when there was none."},
	{"Tw", "queue_seconds", "The wait in the pool's queue."},
	{"Tc", "connect_seconds", "From accept until the connection to the backend was established."},
	{"Tt", "session_seconds", "From accept to the end."},
	{"bytes_out", "bytes_out", "Bytes delivered to the client."},
	{"termination", "termination", "Who or what ended the session, and in which phase: see below."},
	{"sessions", "sessions", "Sessions of lb at the end, this one included."},
	{"listener_active", "listener_active", "Those of the listener."},
	{"pool_active", "pool_active", "Those of the pool."},
	{"backend_active", "backend_active", "Those of the backend."},
	{"retries", "retries", "How many backends were tried in vain."},
	{"0/0", "", "HAProxy's positions in its queues; always 0."},
	{"bytes_in", "bytes_in", "Bytes from the client, delivered to the backend."},
}

// AccessExample is a line of text and a line of JSON of the same session.
func AccessExample(e *Entry) (text, json string) {
	return string(e.appendText(nil)), string(e.appendJSON(nil))
}
