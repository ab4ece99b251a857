//! Appends to a log one entry at a time and says how many flushes it took: what the strace test looks at.
//!
//! Usage: `flush <folder> <entries>`

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
    for index in 0..entries.parse()? {
        let (sender, receiver) = mpsc::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        log.append(vec![(index, Bytes::from_static(b"entry"))], done);
        receiver.recv()??;
    }
    println!("{}", log.sync_count());
    Ok(())
}
