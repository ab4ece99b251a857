//! The settings that all nodes share.

use std::sync::Arc;

use flotilla_storage::StorageError;

use super::{Applied, Reader, State, keys, long_rows};
use crate::command::{Outcome, Refusal};
use crate::records::SettingsRecord;
use crate::settings::Rules;
use crate::wire::{self, Kind};

/// Replaces them, if they are the ones that the command expects.
pub(super) fn put(state: &mut State<'_>, document: &str, expected: Option<u64>) -> Applied {
    let current = state.get(&keys::settings_revision())?.unwrap_or(0);
    if expected.is_some_and(|expected| expected != current) {
        return Ok(Err(Refusal::SettingsChanged { current }));
    }
    let rules = match Rules::parse(document) {
        Ok(rules) => rules.in_force_since(state.index(), state.time_ms()),
        Err(invalid) => return Ok(Err(Refusal::SettingsInvalid(invalid.to_string()))),
    };
    state.delete_long(keys::settings())?;
    let (revision, time_ms) = (state.index(), state.time_ms());
    state.put(keys::settings(), &SettingsRecord { document: document.to_owned(), revision, time_ms })?;
    state.put(keys::settings_revision(), &state.index())?;
    state.set_rules(rules);
    Ok(Ok(Outcome::Done))
}

/// The rules of the stored settings, compiled when they are others than last time.
#[derive(Default)]
pub(crate) struct Stored {
    revision: u64,
    rules: Arc<Rules>,
}

impl Stored {
    /// The rules to apply the next commands with.
    ///
    /// # Errors
    /// Damaged data.
    pub(crate) fn rules(&mut self, reader: &dyn Reader) -> Result<Arc<Rules>, StorageError> {
        let row = reader.get(&keys::settings_revision())?;
        let revision = row.map_or(Ok(0), |row| wire::decode(Kind::Row, &row))?;
        if revision != self.revision {
            let key = keys::settings();
            let missing = || StorageError::Corrupt { what: "the settings' row is missing".into() };
            let stored = reader.get(&key)?.ok_or_else(missing)?;
            let whole = long_rows::join(&key, stored, |part| reader.get(part))?;
            let record: SettingsRecord = wire::decode(Kind::Row, &whole)?;
            let rules = Rules::parse(&record.document)
                .map_err(|invalid| StorageError::Corrupt { what: format!("settings: {invalid}") })?;
            self.rules = Arc::new(rules.in_force_since(record.revision, record.time_ms));
            self.revision = revision;
        }
        Ok(self.rules.clone())
    }
}
