// Package admin is how a running lb is looked at and controlled: an HTTP/JSON API over a Unix socket, the
// same routes over TCP, and the metrics. Package admin/api has what goes over the wire, and the client.
//
// A [Server] shows what its [Sources] tell it, at the moment of each request; it keeps no state of lb itself.
// One table (route.go) holds every route with the [Access] it needs. What a caller may do depends on how he
// came: see [Caller].
//
// Ownership: a Server owns its listeners, the goroutines of package net/http that serve them, and the file of
// the control socket. It never touches the data plane but through the Sources, never exits the process, and
// imports of lb only packages backends and admin/api.
package admin
