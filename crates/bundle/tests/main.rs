//! The tests of reading and writing bundles, in one program that is linked once. Tests that measure
//! the time or the memory of the process are separate programs.

mod blobs;
mod common;
mod compressed;
mod docker_archives;
mod documents;
mod folders;
mod frames;
mod hybrids;
mod layouts;
mod limits;
mod piped;
mod sparse;
mod strangers;
mod tars;
mod written;
