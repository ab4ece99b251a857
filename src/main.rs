//! The program; everything is in the library beside it, where fuzz targets reach it too.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// The C library's allocator keeps memory per thread: with as many threads as a node has, it holds twice what is used.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    flotilla::run()
}
