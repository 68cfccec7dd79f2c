package server

import (
	"net/http"

	"tinkerlocal/cmd/tinker-local/server/remote"
)

// route is one path. public: it needs no key.
type route struct {
	pattern string
	answer  func(s *Server, c *call) (any, error)
	public  bool
}

// table has every path. Those below /api/v1 are the official client's.
var table = []route{
	{"GET /healthz", (*Server).health, true},
	{"GET /readyz", (*Server).readiness, true},
	{"GET /api/v1/healthz", (*Server).health, true},

	{"POST /api/v1/client/config", (*Server).clientConfig, false},
	{"POST /api/v1/client/dynamic_config", (*Server).dynamicConfig, false},
	{"POST /api/v1/auth/token", (*Server).authToken, false},
	{"GET /api/v1/auth/apikey/me", (*Server).apiKey, false},
	{"DELETE /api/v1/auth/apikey/me", (*Server).deleteAPIKey, false},
	{"POST /api/v1/telemetry", (*Server).telemetry, false},
	{"GET /api/v1/get_server_capabilities", (*Server).capabilities, false},

	{"POST /api/v1/create_session", (*Server).createSession, false},
	{"POST /api/v1/session_heartbeat", (*Server).heartbeat, false},
	{"GET /api/v1/sessions", (*Server).listSessions, false},
	{"GET /api/v1/sessions/{session}", (*Server).sessionInfo, false},
	{"POST /api/v1/sessions/search", (*Server).searchSessions, false},
	{"POST /api/v1/sessions/{session}/finish", (*Server).finishSession, false},
	{"PUT /api/v1/sessions/{session}/project", (*Server).assignProject, false},
	{"GET /api/v1/sessions/{session}/trace_export", (*Server).exportTrace, false},

	{"POST /api/v1/create_model", (*Server).createModel, false},
	{"POST /api/v1/get_info", (*Server).getInfo, false},
	{"POST /api/v1/unload_model", (*Server).unloadModel, false},

	{"POST /api/v1/forward", (*Server).forwardBackward, false},
	{"POST /api/v1/forward_backward", (*Server).forwardBackward, false},
	{"POST /api/v1/optim_step", (*Server).optimStep, false},
	{"POST /api/v1/save_weights", (*Server).saveWeights, false},
	{"POST /api/v1/save_weights_for_sampler", (*Server).saveForSampler, false},
	{"POST /api/v1/save_weights_external", (*Server).saveExternal, false},
	{"POST /api/v1/load_weights", (*Server).loadWeights, false},

	{"POST /api/v1/create_custom_loss", (*Server).createCustomLoss, false},
	{"POST /api/v1/copy_weights", (*Server).copyWeights, false},

	{"POST /api/v1/create_sampling_session", (*Server).createSamplingSession, false},
	{"POST /api/v1/join_sampling_session", (*Server).joinSamplingSession, false},
	{"GET /api/v1/samplers/{sampler}", (*Server).samplerInfo, false},
	{"POST /api/v1/asample", (*Server).sample, false},

	{"POST /api/v1/retrieve_future", (*Server).retrieveFuture, false},
	{"POST /api/v1/retrieve_futures", (*Server).retrieveFutures, false},
	{"POST /api/v1/cancel_future", (*Server).cancelFuture, false},

	{"POST /api/v1/weights_info", (*Server).weightsInfo, false},
	{"GET /api/v1/training_runs", (*Server).listRuns, false},
	{"GET /api/v1/training_runs/{run}", (*Server).runInfo, false},
	{"GET /api/v1/training_runs/{run}/checkpoints", (*Server).runCheckpoints, false},
	{"GET /api/v1/checkpoints", (*Server).listCheckpoints, false},
	{"DELETE /api/v1/training_runs/{run}/checkpoints/{kind}/{name}", (*Server).deleteCheckpoint, false},
	{"POST /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/publish", (*Server).publish, false},
	{"DELETE /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/publish", (*Server).unpublish, false},
	{"PUT /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/ttl", (*Server).setTTL, false},
	{"GET /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/archive", (*Server).archiveLink, false},
	{"GET /archive/{run}/{kind}/{name}", (*Server).archive, true}, // its link is signed
	{"GET /api/v1/training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls", (*Server).externalLinks, false},
	{"GET /archive/{run}/{kind}/{name}/{file}", (*Server).externalFile, true}, // its link is signed
	{"GET /api/v1/audit", (*Server).audit, false},
	{"GET /api/v1/billing/usage/events", (*Server).billing, false},
	{"GET /api/v1/billing/usage/checkpoints/current", (*Server).storageUsage, false},

	{"GET /local/v1/status", (*Server).status, false},
	{"PUT /local/v1/plugins/{name}", (*Server).addPlugin, false},
	{remote.Path + "/", (*Server).remoteStore, false},
}

// routes is the table as a handler.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, r := range table {
		mux.HandleFunc(r.pattern, func(w http.ResponseWriter, q *http.Request) { s.serve(w, q, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) { s.unknownPath(w, q, mux) })
	return mux
}
