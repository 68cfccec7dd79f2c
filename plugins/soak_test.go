package plugins

import "os"

// soak runs the long forms of tests.
var soak = os.Getenv("TINKER_SOAK") == "1"
