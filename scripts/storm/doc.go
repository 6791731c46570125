// Package storm starts many pods at once, and many one after the other. Its tests have the build tag storm; scripts/storm.sh runs them.
package storm
