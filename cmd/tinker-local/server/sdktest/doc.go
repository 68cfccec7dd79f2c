// Package sdktest holds the tests of tinker-local serve with the official Tinker SDK and command line: the program as it is built, over
// TCP, and clients as they are published.
//
//	versions.txt      the SDK versions that are tried
//	requirements.txt  what they need, pinned
//	environment.py    installs both below build/, once
//	checks/           pytest files that run with each version; they see the server's address and a key, as any user's script does
//	scripts/          clients that are several, that are interrupted, that have different keys
//
// Where the packages cannot be installed, the tests are skipped with the reason, unless TINKER_REQUIRE_SDK is set, which CI does.
package sdktest
