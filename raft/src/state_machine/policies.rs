//! Image policies: put, removed, and what they were before. What a document says is nothing to the state machine.

use flotilla_storage::StorageError;

use super::{Applied, State, keys};
use crate::command::{Outcome, Refusal};
use crate::names::PolicyName;
use crate::records::PolicyVersion;

/// The most policies, those included whose deletion history still holds.
pub(crate) const POLICIES_MAX: u32 = 1000;

/// The most versions of one policy that are kept.
const VERSIONS_MAX: usize = 100;

/// Puts a policy or removes it, if it is the one that the command expects.
pub(super) fn change(
    state: &mut State<'_>,
    name: &PolicyName,
    document: Option<&str>,
    expected: Option<u64>,
) -> Applied {
    let current = revision(state, name)?;
    if expected.is_some_and(|expected| expected != current) {
        return Ok(Err(Refusal::PolicyChanged { current }));
    }
    if current == 0 {
        if document.is_none() {
            return Ok(Err(Refusal::PolicyUnknown));
        }
        forget_deleted(state)?;
        if names(state)?.len() >= POLICIES_MAX as usize {
            return Ok(Err(Refusal::PoliciesFull { limit: POLICIES_MAX }));
        }
    }
    let version = PolicyVersion {
        document: document.map(str::to_owned),
        time_ms: state.time_ms(),
        actor: state.actor().to_owned(),
    };
    state.put(keys::policy_version(name, state.index()), &version)?;
    state.put(keys::policies_revision(), &state.index())?;
    for (key, _) in state.scan_some(&keys::policy(name), None, VERSIONS_MAX + 1)?.into_iter().skip(VERSIONS_MAX) {
        state.delete_long(key)?;
    }
    Ok(Ok(Outcome::Done))
}

/// Puts the first policies, unless there ever was one.
pub(super) fn found(state: &mut State<'_>, policies: &[(PolicyName, String)]) -> Applied {
    if state.exists(&keys::policies_revision())? {
        return Ok(Ok(Outcome::Done));
    }
    if policies.len() > POLICIES_MAX as usize {
        return Ok(Err(Refusal::PoliciesFull { limit: POLICIES_MAX }));
    }
    for (name, document) in policies {
        let refused = change(state, name, Some(document), None)?.err();
        if let Some(refusal) = refused {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(Outcome::Done))
}

/// The revision of the version in force; 0 where there is none.
fn revision(state: &State<'_>, name: &PolicyName) -> Result<u64, StorageError> {
    let Some((key, _)) = state.first_after(&keys::policy(name), None)? else { return Ok(0) };
    let version: Option<PolicyVersion> = state.get(&key)?;
    match version.is_some_and(|version| version.document.is_some()) {
        true => keys::revision_of_version(&key),
        false => Ok(0),
    }
}

fn names(state: &State<'_>) -> Result<Vec<PolicyName>, StorageError> {
    let prefix = keys::policies();
    let (mut names, mut after) = (Vec::new(), None);
    while let Some((key, _)) = state.first_after(&prefix, after.as_deref())? {
        let name: PolicyName = keys::name_of_version(&key, prefix.len())?;
        after = Some(keys::after_versions(&prefix, name.as_str()));
        names.push(name);
    }
    Ok(names)
}

/// Forgets the policies that were removed longer ago than history goes.
fn forget_deleted(state: &mut State<'_>) -> Result<(), StorageError> {
    let Some(limit) = state.time_ms().checked_sub(state.rules().history_ms()) else { return Ok(()) };
    for name in names(state)? {
        let versions = state.scan_some(&keys::policy(&name), None, VERSIONS_MAX + 1)?;
        let Some((newest, _)) = versions.first() else { continue };
        let newest: Option<PolicyVersion> = state.get(newest)?;
        if newest.is_some_and(|version| version.document.is_none() && version.time_ms < limit) {
            for (key, _) in versions {
                state.delete_long(key)?;
            }
        }
    }
    Ok(())
}
