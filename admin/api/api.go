// Package api is lb's control API as both ends see it: the bodies of its requests and answers, its error, and
// its client.
//
// The names of JSON fields stay as they are; new ones come. A client reads the answer of an older lb, in
// which the newer fields are zero, and ignores the fields of a newer one that it does not know. The server is
// package admin.
package api
