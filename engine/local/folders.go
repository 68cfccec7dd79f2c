package local

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// ModelsVariable is the environment variable that names the models folder when no flag does.
const ModelsVariable = "TINKER_LOCAL_MODELS"

// DefaultModels is the folder for base models: $TINKER_LOCAL_MODELS, or tinker-local/models in the user's
// data folder. It need not exist. "" means that the user has no home folder.
func DefaultModels(getenv func(string) string) string {
	return defaultFolder(getenv, ModelsVariable, "models")
}

// StateVariable is the environment variable that names the state directory when no flag does.
const StateVariable = "TINKER_LOCAL_STATE"

// DefaultState is the state directory, which holds checkpoints and run records: $TINKER_LOCAL_STATE, or tinker-local/state in the
// user's data folder. It need not exist. "" means that the user has no home folder.
func DefaultState(getenv func(string) string) string {
	return defaultFolder(getenv, StateVariable, "state")
}

// defaultFolder is the folder that a variable names, or one in the user's data folder.
func defaultFolder(getenv func(string) string, variable, name string) string {
	if dir := getenv(variable); dir != "" {
		return userPath(getenv, dir)
	}
	data := ""
	switch runtime.GOOS {
	case "windows":
		data = getenv("LocalAppData")
	case "darwin":
		if home := homeDir(getenv); home != "" {
			data = filepath.Join(home, "Library", "Application Support")
		}
	default:
		if data = getenv("XDG_DATA_HOME"); !filepath.IsAbs(data) { // the base directory specification: a relative path is to be ignored
			data = ""
			if home := homeDir(getenv); home != "" {
				data = filepath.Join(home, ".local", "share")
			}
		}
	}
	if data == "" {
		return ""
	}
	return filepath.Join(data, "tinker-local", name)
}

// HubHome is the folder in which Hugging Face programs keep a user's things, such as the access token:
// $HF_HOME, or huggingface in the cache folder. "" means that the user has no home folder.
func HubHome(getenv func(string) string) string {
	if dir := getenv("HF_HOME"); dir != "" {
		return userPath(getenv, dir)
	}
	if dir := getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(userPath(getenv, dir), "huggingface")
	}
	if home := homeDir(getenv); home != "" {
		return filepath.Join(home, ".cache", "huggingface")
	}
	return ""
}

// DefaultHubCache is the folder in which Hugging Face programs keep downloaded models: $HF_HUB_CACHE, its
// older name $HUGGINGFACE_HUB_CACHE, or hub below HubHome.
func DefaultHubCache(getenv func(string) string) string {
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"} {
		if dir := getenv(name); dir != "" {
			return userPath(getenv, dir)
		}
	}
	if home := HubHome(getenv); home != "" {
		return filepath.Join(home, "hub")
	}
	return ""
}

// userPath replaces ~ and $NAME, as the Hugging Face programs do in their settings.
func userPath(getenv func(string) string, path string) string {
	path = os.Expand(path, getenv)
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || os.IsPathSeparator(rest[0])) {
		path = homeDir(getenv) + rest
	}
	return filepath.Clean(path)
}

func homeDir(getenv func(string) string) string {
	if runtime.GOOS == "windows" {
		return getenv("USERPROFILE")
	}
	return getenv("HOME")
}
