package hsm

// A Library is what tests of the module's straight calls need of this package: hsmtest imports it, so they stand outside.
type Library = library

// LoadModule is loadModule.
var LoadModule = loadModule
