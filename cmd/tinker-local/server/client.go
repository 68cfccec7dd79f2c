package server

import (
	"net/http"

	"tinkerlocal/cmd/tinker-local/server/wire"
)

func (s *Server) health(*call) (any, error) { return wire.Healthy(), nil }

// readiness says whether the models that were asked for are loaded.
func (s *Server) readiness(*call) (any, error) {
	if s.ready.Load() {
		return wire.Healthy(), nil
	}
	return jsonReply(http.StatusServiceUnavailable, wire.HealthResponse{Status: "loading"})
}

// clientConfig steers the client: calls come whole, over plain httpx.
func (s *Server) clientConfig(c *call) (any, error) {
	if err := s.read(c, &wire.ClientConfigRequest{}); err != nil {
		return nil, err
	}
	yes, no := true, false
	return wire.ClientConfig{Tokens: &yes, UsePyqwestTransport: &no, ProtoRequests: &yes, CreateViaLoad: &yes, TellOfSamples: &yes, JoinSamplingSession: &yes, ChunkDatums: chunkDatums, ChunkBytes: chunkBytes}, nil
}

func (s *Server) dynamicConfig(c *call) (any, error) {
	if err := s.read(c, &wire.ClientConfigRequest{}); err != nil {
		return nil, err
	}
	yes := true
	return wire.ClientDynamicConfig{CancelSamples: &yes}, nil
}

// telemetry takes what clients tell and throws it away: it may hold a key, and it is nobody's business here.
func (s *Server) telemetry(c *call) (any, error) {
	err := s.withBody(c, s.lim.PromptBody, func([]byte) error { return nil })
	return wire.TelemetryAccepted(), err
}

// organization is that of all owners.
const organization = "tinker-local"

// userURN is the name of an owner where clients want one that is unique in the world.
func userURN(owner string) string { return "urn:tinker-local:user:" + owner }

// capabilities lists the base models that can be trained and sampled. One whose folder cannot be read is left out.
func (s *Server) capabilities(*call) (any, error) {
	out := wire.CapabilitiesResponse{SupportedModels: []wire.SupportedModel{}}
	for _, name := range s.engine.Models() {
		facts, err := s.opt.Describe(name)
		if err != nil {
			s.log.Debug("model left out", "model", name, "err", err)
			continue
		}
		out.SupportedModels = append(out.SupportedModels, wire.SupportedModel{
			ModelName: name, MaxContextLength: facts.Context, Trainable: true, Sampleable: true,
		})
	}
	return out, nil
}

// audit and billing: nothing of the kind is kept.
func (s *Server) audit(*call) (any, error)   { return wire.NoAudit(), nil }
func (s *Server) billing(*call) (any, error) { return wire.NoBilling(), nil }
