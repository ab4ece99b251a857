//! Appends to a log, one entry at a time: what the tests look at with strace, and kill.
//!
//! Usage: `flush <folder> <entries>`. Prints each index once it is durable, and at the end the number of flushes.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use flotilla_storage::{LogStore, sync};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, entries] = arguments.as_slice() else {
        return Err("usage: flush <folder> <entries>".into());
    };
    let folder = Path::new(folder);
    sync::self_test(folder)?;
    let log = LogStore::open(folder)?;
    let first = log.last_index()?.map_or(0, |last| last + 1);
    let entries: u64 = entries.parse()?;
    let mut output = std::io::stdout().lock();
    for index in first..first + entries {
        // Every third entry has several parts.
        let length = if index % 3 == 2 { 12_000 } else { 200 };
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        log.append(vec![(index, Bytes::from(vec![index as u8; length]))], done);
        receiver.recv()??;
        writeln!(output, "durable {index}")?;
        output.flush()?;
    }
    writeln!(output, "flushes {}", log.sync_count())?;
    Ok(())
}
