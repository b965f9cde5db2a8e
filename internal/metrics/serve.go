package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"socketbox/internal/binder"
	"socketbox/internal/handoff"
)

// What a scraper may take: a scrape is one page, asked for now and then.
const (
	maxScrapes  = 4
	headerTime  = 5 * time.Second
	scrapeTime  = 30 * time.Second
	idleTime    = 2 * time.Minute
	maxHeader   = 8 << 10
	stoppedTime = 5 * time.Second
	// repeatEvery is how often the same trouble is logged again.
	repeatEvery = time.Minute
)

// Serve answers scrapes at /metrics until TERM or INT. listen is an address,
// or unix:/path; dir is the instance's main socket directory.
func Serve(listen, dir string, log *slog.Logger) error {
	if unix.Geteuid() == 0 {
		return &handoff.HintError{Err: errors.New("metrics does not run as root: it needs no privilege"),
			Text: "setpriv --reuid nobody --regid socketbox --clear-groups socketbox metrics …, or socketbox-metrics.service"}
	}
	network, address := "tcp", listen
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		network, address = "unix", path
		removeDead(path)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return fmt.Errorf("listen for scrapes on %s: %w", listen, err)
	}
	c := &Collector{Fetch: func() (*binder.Status, error) { return binder.FetchStatus(dir) }, Failed: complainer(log)}
	server := &http.Server{
		Handler: Handler(c), ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: scrapeTime,
		IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	log.Info("serving metrics", "address", l.Addr().String(), "directory", dir)
	select {
	case err := <-ended:
		return fmt.Errorf("serve metrics: %w", err)
	case <-stop.Done():
	}
	last, done := context.WithTimeout(context.Background(), stoppedTime)
	defer done()
	return server.Shutdown(last)
}

// Handler serves the metrics of c at /metrics, and says so at /.
func Handler(c *Collector) http.Handler {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, EnableOpenMetrics: true}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "socketbox: see /metrics") })
	return mux
}

// removeDead unlinks the socket at path if nobody is behind it.
func removeDead(path string) {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		os.Remove(path)
	}
}

// complainer logs why there is no status, each reason once in a while.
func complainer(log *slog.Logger) func(error) {
	var mu sync.Mutex
	var last string
	var at time.Time
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if text := err.Error(); text != last || time.Since(at) > repeatEvery {
			last, at = text, time.Now()
			log.Warn("no status", "reason", err)
		}
	}
}
