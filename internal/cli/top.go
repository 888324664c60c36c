package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
)

const (
	// topInterval is the least time between two questions of lb top.
	topInterval = time.Second
	// topPause is how many times as long as an answer took lb top waits before it asks again, up to
	// topLongest: it keeps lb top and the lb that it looks at cheap however many backends there are.
	topPause   = 40
	topLongest = 4 * time.Second
	// topListLimit is how many sessions or clients lb top asks for.
	topListLimit = 1000
	// topLinesLimit is how many lines of workers lb top asks for, over all pools, and topLinesLeast how many
	// of each pool at least.
	topLinesLimit, topLinesLeast = 400, 20
)

func newTopCommand() *cobra.Command {
	c := new(caller)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch and change backends, workers, sessions, clients, events and logs in the whole terminal",
		Long: "Watch pools, backends, workers, sessions, clients, events and the lines of workers in the whole terminal, and change them. The key ? lists the keys.\n\n" +
			"Every change is asked back, with what it will do. Colours are the terminal's; NO_COLOR switches them off.",
		Args: cobra.NoArgs,
		RunE: c.action(showTop),
	}
	addSocketFlag(cmd, &c.socket)
	cmd.DisableFlagsInUseLine = true
	return cmd
}

// errNoTerminal says what to use where lb top has nothing to draw on.
var errNoTerminal = errors.New("lb top needs a terminal for its input and output; lb status --json prints the same for programs, lb status --watch for people")

func showTop(c *call) error {
	if !terminal(c.out) || !isTerminal(int(os.Stdin.Fd())) || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return errNoTerminal
	}
	// Fail in plain text where there is no lb, before the terminal changes.
	ctx, cancel := c.soon()
	first, err := c.Status(ctx)
	cancel()
	if err != nil {
		return err
	}
	// Without negotiation nothing waits for a terminal that does not answer. Text from lb is escaped when it
	// comes (newTopCell); the screen holds back what would get past that.
	screen, err := tcell.NewScreen(tcell.OptNegotiation(false), tcell.OptSanitizeContent(true))
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("cannot use the terminal: %w; lb status --watch needs less of it", err)
	}
	defer screen.Fini()
	top := &topProgram{client: c.Client, screen: screen, model: newTopModel()}
	top.model.take(topAnswer{status: first, at: time.Now()})
	top.run(c.ctx)
	return nil
}

// topProgram is a running lb top. Only the goroutine of run touches the model and the screen; questions and
// changes run in goroutines of their own, which run waits for.
type topProgram struct {
	client *api.Client
	screen tcell.Screen
	model  *topModel

	asking  sync.WaitGroup
	answers chan topAnswer
	results chan string
}

// run draws and answers keys until the user quits or ctx is done.
func (p *topProgram) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	p.answers, p.results = make(chan topAnswer, 1), make(chan string, 1)
	defer p.asking.Wait()
	defer cancel()

	next := time.NewTimer(0)
	defer next.Stop()
	waiting := false
	for !p.model.quit {
		p.model.draw(p.screen)
		p.screen.Show()
		select {
		case event := <-p.screen.EventQ():
			p.handle(ctx, event)
			for more := true; more && !p.model.quit; { // keys that repeat faster than they can be drawn
				select {
				case event := <-p.screen.EventQ():
					p.handle(ctx, event)
				default:
					more = false
				}
			}
			if p.model.stale && !waiting {
				next.Reset(0)
			}
		case <-next.C:
			waiting, p.model.stale = true, false
			question := p.model.question()
			p.asking.Go(func() { p.ask(ctx, question) })
		case answer := <-p.answers:
			waiting = false
			p.model.take(answer)
			pause := min(max(topInterval, topPause*answer.took), topLongest)
			if p.model.stale {
				pause = 0
			}
			next.Reset(pause)
		case text := <-p.results:
			p.model.message, p.model.stale = text, true
			if !waiting {
				next.Reset(0)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *topProgram) handle(ctx context.Context, event tcell.Event) {
	switch event := event.(type) {
	case *tcell.EventResize:
		p.screen.Sync()
	case *tcell.EventKey:
		if event.Key() == tcell.KeyCtrlL {
			p.screen.Sync()
			return
		}
		if change := p.model.key(event); change != nil {
			p.asking.Go(func() {
				select {
				case p.results <- p.perform(ctx, *change):
				case <-ctx.Done():
				}
			})
		}
	}
}

// topQuestion is what lb top wants to know next.
type topQuestion struct {
	tab   topTab
	after uint64 // the last event that is known
}

// topLine is a line that a worker of a pool wrote.
type topLine struct {
	pool string
	api.WorkerLine
}

// topAnswer is what lb said. Sessions, clients, events and lines are there where they were asked for.
type topAnswer struct {
	at       time.Time
	took     time.Duration
	err      error
	status   *api.Status
	sessions *api.SessionList
	clients  *api.ClientList
	events   []api.Event
	lines    []topLine
}

// ask asks lb and sends the answer to run.
func (p *topProgram) ask(ctx context.Context, q topQuestion) {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var a topAnswer
	start := time.Now()
	a.status, a.err = p.client.Status(limited)
	if a.err == nil {
		switch q.tab {
		case topSessions:
			a.sessions, a.err = p.client.Sessions(limited, api.SessionFilter{}, topListLimit)
		case topClients:
			a.clients, a.err = p.client.Clients(limited, api.SessionFilter{}, topListLimit)
		case topEvents:
			a.err = p.client.Events(limited, api.EventQuery{After: q.after}, func(e api.Event) error {
				a.events = append(a.events, e)
				return nil
			})
			if errors.Is(a.err, io.EOF) {
				a.err = nil
			}
		case topLogs:
			a.lines, a.err = p.lastLines(limited, a.status)
		}
	}
	a.at = time.Now()
	a.took = a.at.Sub(start)
	select {
	case p.answers <- a:
	case <-ctx.Done():
	}
}

// lastLines asks for the last lines of all workers, and returns them the newest first.
func (p *topProgram) lastLines(ctx context.Context, st *api.Status) (lines []topLine, err error) {
	pools := completeWorkerPools(st)
	lines = []topLine{} // not nil: they were asked for
	for _, pool := range pools {
		q := api.LogQuery{Slot: -1, Last: max(topLinesLeast, topLinesLimit/len(pools))}
		err := p.client.Logs(ctx, pool, q, func(l api.WorkerLine) error {
			lines = append(lines, topLine{pool, l})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(lines, func(a, b topLine) int { return a.Time.Compare(b.Time) })
	slices.Reverse(lines)
	return lines, nil
}
