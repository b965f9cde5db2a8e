package main

import (
	"errors"

	"github.com/spf13/cobra"

	"socketbox/internal/socketdir"
)

func newDirCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dir",
		Short: "Make socket directories",
		Args:  usage(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newDirCreateCommand())
	return c
}

func newDirCreateCommand() *cobra.Command {
	var owner, dir string
	var tmpfiles bool
	c := &cobra.Command{
		Use:   "create NAME --owner USER",
		Short: "Make a socket directory with the rights that a daemon and the binder need",
		Long: `Make the directory NAME below the main socket directory: it belongs to USER, in
whose hands it is, and to the binder's group, which may pass (mode 2750). NAME
may be nested, as shop/web; what leads there is made so that everybody may pass
and nobody may list it, and is left as it is if it is there.

USER is a name, a number, or podman:USER:UID: the user with that number in a
rootless container of USER, which /etc/subuid tells. A directory that is there
already gets its rights mended in place: containers that have it mounted go on.`,
		Example: `  sudo socketbox dir create shop --owner shop
  sudo socketbox dir create shop/web --owner podman:shop:33
  socketbox dir create shop --owner shop --tmpfiles | sudo tee /etc/tmpfiles.d/socketbox-shop.conf`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if owner == "" {
				return newUsageError(c, errors.New("--owner is missing: the user whose daemon receives there"))
			}
			main, err := mainDir(dir, defaultConfig)
			if err != nil {
				return err
			}
			p := &socketdir.Plan{Main: main, Name: args[0]}
			if err := p.Check(); err != nil {
				return newUsageError(c, err)
			}
			if p.Owner, err = socketdir.ParseOwner(owner); err != nil {
				return err
			}
			if tmpfiles {
				return p.Tmpfiles(c.OutOrStdout())
			}
			return p.Create(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&owner, "owner", "", "`USER` whose daemon receives there: name, number, or podman:USER:UID")
	f.StringVar(&dir, "dir", "", dirHelp)
	f.BoolVar(&tmpfiles, "tmpfiles", false, "make nothing, print the lines of tmpfiles.d(5) that make it at boot")
	return c
}
