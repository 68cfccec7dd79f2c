package server

import (
	"net/http"

	"tinkerlocal/cmd/tinker-local/server/remote"
	"tinkerlocal/engine/api"
)

// maxModule bounds an uploaded module; package plugins refuses earlier what it cannot use.
const maxModule = 64 << 20

// forAdmin refuses callers that are not this program's own command line.
func forAdmin(c *call) error {
	if !c.admin {
		return refuse(http.StatusForbidden, api.BadRequest, "this is for the server's own command line")
	}
	return nil
}

// remoteStore is the state directory's store for the commands beside the server.
func (s *Server) remoteStore(c *call) (any, error) {
	if err := forAdmin(c); err != nil {
		return nil, err
	}
	if s.remote == nil {
		return nil, api.Errorf(api.Unsupported, "this server keeps no checkpoints")
	}
	return http.StripPrefix(remote.Path, s.remote), nil
}

// addPlugin takes a loss module, where that is allowed. It is checked as the command line checks it.
func (s *Server) addPlugin(c *call) (any, error) {
	if s.opt.AddPlugin == nil {
		return nil, refuse(http.StatusForbidden, api.Unsupported, "modules cannot be uploaded to this server: it was started without --allow-plugin-upload")
	}
	name := c.PathValue("name")
	if err := api.CheckName("name", name); err != nil {
		return nil, err
	}
	var out any
	err := s.withBody(c, maxModule, func(body []byte) (err error) {
		out, err = s.opt.AddPlugin(c.Context(), name, body)
		return err
	})
	return out, err
}
