// Package doctor looks for what commonly keeps socketbox from working, on the
// whole machine: kernel, sysctls, accounts, configuration, directories,
// receivers, the running instance. Each finding comes with its cure. It changes
// nothing, but for leftovers of dead instances where it is told to.
//
// It runs with its caller's privilege; root sees more.
package doctor
