package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// exchangeLimit is how long one request of this package's own client may take.
const exchangeLimit = 10 * time.Second

// client is one HTTP/1.1 connection of our own. It is as plain as can be, because it stands for a session,
// not for load.
type client struct {
	conn net.Conn
}

// dialClient connects to addr, as host:port, or to a Unix socket if addr begins with "unix:".
func dialClient(ctx context.Context, addr string) (*client, error) {
	network, target := "tcp", addr
	if path, ok := unixPath(addr); ok {
		network, target = "unix", path
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, target)
	if err != nil {
		return nil, err
	}
	return &client{conn: conn}, nil
}

// exchange sends one request and reads the whole reply, which must be a 200 and as long as [BodySize] says.
// Between two exchanges the client holds no buffer, so that thousands of idle ones are cheap.
func (c *client) exchange(ctx context.Context, path string, in *bufio.Reader) error {
	limit := time.Now().Add(exchangeLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	if err := c.conn.SetDeadline(limit); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(c.conn, "GET "+path+" HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return err
	}
	in.Reset(c.conn)
	reply, err := http.ReadResponse(in, nil)
	if err != nil {
		return fmt.Errorf("cannot read reply: %w", err)
	}
	n, err := io.Copy(io.Discard, reply.Body)
	if err != nil {
		return fmt.Errorf("cannot read reply: %w", err)
	}
	if reply.StatusCode != http.StatusOK {
		return fmt.Errorf("cannot use reply of status %d", reply.StatusCode)
	}
	if want := BodySize(path); n != want {
		return fmt.Errorf("cannot use reply of %d bytes instead of %d", n, want)
	}
	return nil
}

func newReplyReader() *bufio.Reader { return bufio.NewReaderSize(nil, 64<<10) }

// Probe sends one request for path to addr over a connection of its own, and returns nil if the right reply
// came. An addr that begins with "unix:" is a Unix socket.
func Probe(ctx context.Context, addr, path string) error {
	c, err := dialClient(ctx, addr)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	return c.exchange(ctx, path, newReplyReader())
}

// WarmUp sends requests to addr over conns connections for a while, each on a new connection if newConn is
// set, and checks the length of each reply. The first failure ends it and is returned.
func WarmUp(ctx context.Context, addr, path string, conns int, newConn bool, duration time.Duration) error {
	end := time.Now().Add(duration)
	one := func(ctx context.Context) error {
		in := newReplyReader()
		var c *client
		defer func() {
			if c != nil {
				c.conn.Close()
			}
		}()
		for time.Now().Before(end) {
			if c == nil {
				var err error
				if c, err = dialClient(ctx, addr); err != nil {
					return err
				}
			}
			if err := c.exchange(ctx, path, in); err != nil {
				return err
			}
			if newConn {
				c.conn.Close()
				c = nil
			}
		}
		return nil
	}
	if err := inParallel(ctx, conns, func(ctx context.Context, _ int) error { return one(ctx) }); err != nil {
		return fmt.Errorf("cannot warm up %s: %w", addr, err)
	}
	return nil
}

// inParallel calls f for 0 to n-1, each in a goroutine, waits for all of them and returns the first error.
// After an error the context of the others ends.
func inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Sessions is a number of client connections that are held open. Its methods are for one goroutine.
type Sessions struct {
	clients []*client
	path    string
}

// openers is how many sessions are opened at a time: few enough for any listen queue.
const openers = 16

// OpenSessions opens n connections to addr and sends one request for path on each, so that each is connected
// through to a backend and nothing is under way when it returns. The caller must Close the sessions.
func OpenSessions(ctx context.Context, addr, path string, n int) (*Sessions, error) {
	s := &Sessions{clients: make([]*client, n), path: path}
	err := s.each(ctx, func(ctx context.Context, i int, in *bufio.Reader) error {
		c, err := dialClient(ctx, addr)
		if err != nil {
			return err
		}
		s.clients[i] = c
		return c.exchange(ctx, path, in)
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot open %d sessions to %s: %w", n, addr, err)
	}
	return s, nil
}

// each calls f for every session, from several goroutines, and returns the first error.
func (s *Sessions) each(ctx context.Context, f func(ctx context.Context, i int, in *bufio.Reader) error) error {
	return inParallel(ctx, openers, func(ctx context.Context, first int) error {
		in := newReplyReader()
		for i := first; i < len(s.clients); i += openers {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(ctx, i, in); err != nil {
				return err
			}
		}
		return nil
	})
}

// Check sends one more request on every session. An error says that a session was lost.
func (s *Sessions) Check(ctx context.Context) error {
	err := s.each(ctx, func(ctx context.Context, i int, in *bufio.Reader) error {
		return s.clients[i].exchange(ctx, s.path, in)
	})
	if err != nil {
		return fmt.Errorf("cannot use session again: %w", err)
	}
	return nil
}

// Close closes all of the sessions.
func (s *Sessions) Close() error {
	var errs []error
	for _, c := range s.clients {
		if c != nil {
			errs = append(errs, c.conn.Close())
		}
	}
	return errors.Join(errs...)
}
