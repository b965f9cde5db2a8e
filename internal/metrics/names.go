package metrics

import "github.com/prometheus/client_golang/prometheus"

// descriptions is every metric, in the order of their making.
var descriptions []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("socketbox_"+name, help, labels, nil)
	descriptions = append(descriptions, d)
	return d
}

// countDescs are the metrics of a set of counts.
type countDescs struct{ accepted, ended, held, waiting *prometheus.Desc }

// describeCounts makes the metrics of the counts of a listener, rule or target.
func describeCounts(of string, labels ...string) countDescs {
	return countDescs{
		accepted: desc(of+"_accepted_total", "Connections accepted.", labels...),
		ended:    desc(of+"_connections_total", "Connections that have left: delivered to a receiver, rejected by a rule, failed because the target could not take them.", append(labels, "outcome")...),
		held:     desc(of+"_held_total", "Connections that had to wait, whatever became of them.", labels...),
		waiting:  desc(of+"_waiting", "Connections on hold now.", labels...),
	}
}

var (
	up           = desc("up", "Whether the instance answers.")
	startTime    = desc("start_time_seconds", "When the binder started, in Unix time.")
	dispatcherUp = desc("dispatcher_up", "Whether there is a dispatcher.")
	restarts     = desc("dispatcher_restarts_total", "Dispatchers that died and were replaced.")
	reloads      = desc("reloads_total", "Reloads since the binder started.", "result")
	reloadOK     = desc("last_reload_successful", "Whether the last reload succeeded; 1 before the first.")
	reloadTime   = desc("last_reload_timestamp_seconds", "When the last reload ended, in Unix time.")
	holdLimit    = desc("hold_limit", "Connections that may be on hold for all targets together.")
	guardOn      = desc("guard_on", "Whether the instance has a guard.")
	refusals     = desc("guard_refusals_total", "What somebody wanted to do with a passed socket that the guard has refused.", "action")
	processOK    = desc("process_confined", "Whether a process of the instance has no capability and is confined, as /proc shows it.", "role")

	listenerCounts   = describeCounts("listener", "listener")
	handOff          = desc("listener_handoff_seconds", "Time from accept to hand-off, hold included.", "listener")
	guarded          = desc("listener_guarded", "Whether the listener is in the guard.", "listener")
	acceptQueue      = desc("listener_accept_queue", "Connections in the kernel's backlog, which nobody has accepted yet.", "listener")
	lent             = desc("listener_lent", "Whether the listener is lent: its borrower accepts by itself.", "listener")
	loans            = desc("listener_loans_total", "How often the listener has been borrowed.", "listener")
	acceptQueueLimit = desc("listener_accept_queue_limit", "Connections that fit into the kernel's backlog.", "listener")

	ruleCounts = describeCounts("rule", "rule", "place", "target")

	targetCounts   = describeCounts("target", "target")
	targetFailures = desc("target_failures_total", "Connections reset because the target could not take them, by cause.", "target", "cause")
	targetPaths    = desc("target_paths", "Resolved paths of the target that clients have needed, by state.", "target", "state")
	targetHold     = desc("target_hold_seconds", "Time on hold of the connections that had to wait.", "target")
)
