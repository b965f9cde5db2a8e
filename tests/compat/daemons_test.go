//go:build compat

package compat

import "slices"

// daemons are the rows of the table.
var daemons = slices.Concat(web, proxies, interpreters, stores, logins, mail)
