//! By what the nodes believe each other: the certificates of the authorities that all of them trust, and tokens by
//! which nodes may join. What a certificate says is nothing to the state machine, and no key ever comes here.

use bytes::Bytes;
use flotilla_storage::StorageError;

use super::{Applied, State, keys};
use crate::command::{Outcome, Refusal, TrustChange, TrustRefusal};
use crate::member::NodeId;
use crate::records::{AuthoritiesRecord, TokenRecord};

/// The most tokens that have not ended.
pub(crate) const TOKENS_MAX: u32 = 100;

/// How long a token that has ended is remembered, in milliseconds: who comes with it is told so.
const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) fn change(state: &mut State<'_>, change: &TrustChange) -> Applied {
    match change {
        TrustChange::Authorities { certificates, signer, expected } => {
            put_authorities(state, certificates, *signer, *expected)
        }
        TrustChange::PutToken { id, authority, lifetime_ms } => put_token(state, id, authority, *lifetime_ms),
        TrustChange::UseToken { id, node } => use_token(state, id, *node),
    }
}

fn refused(refusal: TrustRefusal) -> Applied {
    Ok(Err(Refusal::Trust(refusal)))
}

fn put_authorities(state: &mut State<'_>, certificates: &[Bytes], signer: u32, expected: u64) -> Applied {
    let former: Option<AuthoritiesRecord> = state.get(&keys::authorities())?;
    let current = former.map_or(0, |former| former.revision);
    if current != expected {
        return refused(TrustRefusal::AuthoritiesChanged { current });
    }
    if !(1..=2).contains(&certificates.len()) || signer as usize >= certificates.len() {
        return refused(TrustRefusal::AuthoritiesInvalid);
    }
    let record = AuthoritiesRecord {
        certificates: certificates.to_vec(),
        signer,
        revision: state.index(),
        time_ms: state.time_ms(),
    };
    state.delete_long(keys::authorities())?;
    state.put(keys::authorities(), &record)?;
    Ok(Ok(Outcome::Done))
}

fn tokens(state: &State<'_>) -> Result<Vec<TokenRecord>, StorageError> {
    Ok(state.get(&keys::tokens())?.unwrap_or_default())
}

fn store(state: &mut State<'_>, tokens: &[TokenRecord]) -> Applied {
    state.delete_long(keys::tokens())?;
    state.put(keys::tokens(), &tokens)?;
    Ok(Ok(Outcome::Done))
}

fn put_token(state: &mut State<'_>, id: &str, authority: &Bytes, lifetime_ms: u64) -> Applied {
    let now = state.time_ms();
    let mut tokens = tokens(state)?;
    tokens.retain(|token| token.ends_ms.saturating_add(REMEMBERED_MS) > now);
    if tokens.iter().any(|token| token.id == id) {
        return refused(TrustRefusal::TokenExists);
    }
    let full = tokens.len() >= TOKENS_MAX as usize;
    if full && tokens.iter().all(|token| token.ends_ms > now) {
        return refused(TrustRefusal::TokensFull { limit: TOKENS_MAX });
    }
    if full {
        tokens.retain(|token| token.ends_ms > now);
    }
    let ends_ms = now.saturating_add(lifetime_ms);
    tokens.push(TokenRecord { id: id.to_owned(), authority: authority.clone(), ends_ms, used_by: None });
    store(state, &tokens)
}

fn use_token(state: &mut State<'_>, id: &str, node: NodeId) -> Applied {
    let mut tokens = tokens(state)?;
    let now = state.time_ms();
    let Some(token) = tokens.iter_mut().find(|token| token.id == id) else {
        return refused(TrustRefusal::TokenUnknown);
    };
    if token.used_by.is_some_and(|user| user != node) {
        return refused(TrustRefusal::TokenUsed);
    }
    if token.ends_ms <= now {
        return refused(TrustRefusal::TokenEnded);
    }
    token.used_by = Some(node);
    store(state, &tokens)
}
