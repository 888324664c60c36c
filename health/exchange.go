package health

import (
	"fmt"

	"github.com/273ebdf9/lb/backends"
)

// Exchange returns, in words, what a probe of b sends and what it wants back; empty for nothing.
func (c *Checker) Exchange(b *backends.Backend) (sent, wanted string) {
	w := c.get(b)
	if w == nil {
		return "", ""
	}
	w.mu.Lock()
	p := w.plan
	w.mu.Unlock()
	return p.describe(b)
}

// describe returns, in words, what a probe of b sends and what it wants back.
func (p *plan) describe(b *backends.Backend) (sent, wanted string) {
	switch p.Type {
	case typeNone, typeNotify:
		return "", ""
	case typeHTTP:
		sent = fmt.Sprintf("%s %s, Host: %s", p.HTTPMethod, p.HTTPPath, p.httpHost(b))
		wanted = "http status " + p.status.String()
	case typeSendExpect, typeAgent:
		if len(p.send) > 0 {
			sent = quote(p.send)
		}
		wanted = "a line of the agent protocol"
		if p.Type == typeSendExpect {
			wanted = p.expect.String()
		}
	case typeAccept:
		wanted = "that a process accepts the connection"
	case typeConnect:
		wanted = "a connection"
	}
	if version := b.Pool().Config().SendProxy; version != "" && p.address == (backends.Address{}) && p.Port == 0 {
		header := "a PROXY " + version + " header"
		if sent != "" {
			header += ", then "
		}
		sent = header + sent
	}
	if p.address != (backends.Address{}) || p.Port != 0 {
		wanted += ", at " + p.destination(b).String()
	}
	return sent, wanted
}
