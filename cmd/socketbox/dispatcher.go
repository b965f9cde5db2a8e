package main

import (
	"socketbox/internal/dispatch"
	"socketbox/internal/privsep"
)

// runDispatcher is the role that the binder starts, and starts again.
func runDispatcher() error { return dispatch.Run(roleLog(privsep.Dispatcher)) }
