package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"socketbox/internal/doctor"
)

func newDoctorCommand() *cobra.Command {
	var o doctor.Options
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps it from working, and name the cure",
		Long: `Look at what commonly keeps socketbox from working: the kernel's features,
sysctls, accounts, the configuration and whether it is in force, the running
instance, socket directories and receivers as the binder sees them, and what
dead instances have left. Each finding comes with its cure.

As root it sees more. It changes nothing, unless --fix tells it to remove what
dead instances have left. The exit status is 1 if there is a problem; warnings
and notes are none.`,
		Example: `  sudo socketbox doctor
  socketbox doctor --json | jq '.findings[] | select(.level == "problem")'`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Dir == "" {
				o.Dir = os.Getenv("SOCKETBOX_DIR")
			}
			r := doctor.Examine(o)
			err := r.Print(c.OutOrStdout(), asJSON)
			if err != nil {
				return err
			}
			if r.Problems > 0 {
				return errors.New("doctor: there are problems")
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&o.Config, "config", "c", defaultConfig, "configuration `FILE`")
	f.StringVar(&o.Dir, "dir", "", "main socket `DIR` (default $SOCKETBOX_DIR; else as configured)")
	f.BoolVar(&o.Fix, "fix", false, "remove what dead instances have left")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
