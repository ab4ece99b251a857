//! Writes batches of five rows of 200 bytes to the state: what the tests kill, and how its speed is measured.
//!
//! Usage: `state <folder> <batches> <flush each>`. Prints each batch that a flush made durable, at the end the speed.
//! Every batch carries its number, also in the row `last`, and rewrites the rows of the batch 1000 before it.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_storage::{MetadataStore, Rows, sync};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, batches, flush_each] = arguments.as_slice() else {
        return Err("usage: state <folder> <batches> <flush each>".into());
    };
    let store = MetadataStore::open(Path::new(folder))?;
    let last = store.get(b"last")?.map(String::from_utf8).transpose()?;
    let first = last.map(|last| last.parse::<u64>()).transpose()?.map_or(0, |last| last + 1);
    let (batches, flush_each): (u64, u64) = (batches.parse()?, flush_each.parse()?);
    let mut output = std::io::stdout().lock();
    let (started, syncs) = (Instant::now(), sync::sync_calls());
    let mut longest = Duration::ZERO;
    for number in first..first + batches {
        let one = Instant::now();
        store.write(&batch(number))?;
        longest = longest.max(one.elapsed());
        if number % flush_each == flush_each - 1 {
            store.flush()?;
            writeln!(output, "durable {number}")?;
            output.flush()?;
        }
    }
    let written = started.elapsed();
    store.flush()?;
    let syncs = sync::sync_calls() - syncs;
    writeln!(
        output,
        "{:.0} writes/s, {syncs} syncs, longest write {longest:?}",
        batches as f64 / written.as_secs_f64()
    )?;
    writeln!(output, "{:.0} writes/s with the last flush", batches as f64 / started.elapsed().as_secs_f64())?;
    Ok(())
}

fn batch(number: u64) -> Rows {
    let mut value = number.to_string().into_bytes();
    let last = (b"last".to_vec(), Some(value.clone()));
    value.resize(200, b' ');
    let slot = number % 1000;
    (0..5).map(|row| (format!("row-{slot}-{row}").into_bytes(), Some(value.clone()))).chain([last]).collect()
}
