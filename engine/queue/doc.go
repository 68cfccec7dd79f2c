// Package queue decides what runs next: the order of one run's operations ([Line]), whose turn it is
// among runs ([Turns]), and how training and sampling share a device ([Share]). It is pure logic: it
// starts nothing, holds no lock and no clock. Its caller serialises the calls and passes the time in.
package queue
