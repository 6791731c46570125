// Package kernels holds tests that run inside another kernel, which scripts/kernels.sh boots: what detour programs there, whether
// `detourctl doctor` said so beforehand, and what happens where a module is missing. They unload modules and so run nowhere else.
package kernels
