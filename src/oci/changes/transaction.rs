//! Several tags at once: all of the changes are made, at one revision, or none.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, HttpResponse, post, web};
use flotilla_raft::json::{Object, objects};
use flotilla_raft::{Condition, TagChange};
use flotilla_storage::Digest;
use serde::Deserialize;
use serde_json::json;

use super::propose;
use crate::body::read_body;
use crate::oci::error::{Code, OciError};
use crate::oci::{FLOTILLA_REVISION, Oci, condition, decimal};

/// The most changes of one transaction: it is one entry of the log.
const CHANGES_MAX: usize = 1000;

/// The largest body of a request, in bytes.
const BODY_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transaction {
    #[serde(deserialize_with = "objects")]
    changes: Vec<Change>,
}

/// One change: without a digest the tag is removed. The conditions read as the headers of their names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    repository: String,
    tag: String,
    digest: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
}

/// `POST /api/v1/transactions`
#[utoipa::path(
    request_body(content = Object, description = "`{\"changes\": [{\"repository\", \"tag\", \"digest\", \"if_match\", \"if_none_match\"}]}`"),
    responses(
        (status = 200, body = Object, description = "All changes were made, at this revision"),
        (status = 400, body = Object, description = "Not understood: nothing was changed"),
        (status = 403, body = Object, description = "A tag is immutable: nothing was changed"),
        (status = 404, body = Object, description = "A manifest or a tag is not there: nothing was changed"),
        (status = 412, body = Object, description = "A condition does not hold: nothing was changed"),
    )
)]
#[post("/api/v1/transactions")]
pub(super) async fn change_tags(
    oci: web::Data<Oci>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let mut memory = oci.bodies.share();
    let body = read_body(&request, payload, BODY_MAX, oci.config.body_timeout, &mut memory).await?;
    let Object(transaction): Object<Transaction> =
        serde_json::from_slice(&body).map_err(|error| refused(error.to_string()))?;
    let changes = checked(transaction.changes)?;
    let revision = propose(&oci, changes).await?;
    let shown = json!({ "revision": revision });
    Ok(HttpResponse::Ok().insert_header((FLOTILLA_REVISION, decimal(revision))).json(shown))
}

fn checked(changes: Vec<Change>) -> Result<Vec<TagChange>, OciError> {
    if changes.is_empty() || changes.len() > CHANGES_MAX {
        return Err(refused(format!("a transaction has 1 to {CHANGES_MAX} changes")));
    }
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(changes.len());
    for (number, change) in changes.into_iter().enumerate() {
        let place = (change.repository.clone(), change.tag.clone());
        if !seen.insert(place) {
            let Change { repository, tag, .. } = change;
            return Err(refused(format!("change {number}: tag {tag} of {repository} is changed twice")));
        }
        checked.push(change.parsed().map_err(|error| error.in_change(number as u32))?);
    }
    Ok(checked)
}

impl Change {
    fn parsed(self) -> Result<TagChange, OciError> {
        let condition = match (self.if_match.as_deref(), self.if_none_match.as_deref()) {
            (None, None) => None,
            (Some(text), None) => Some(condition::parse(text).ok_or_else(odd_condition)?),
            (None, Some("*")) => Some(Condition::Absent),
            _ => return Err(odd_condition()),
        };
        let digest: Option<Digest> = self.digest.map(|digest| digest.parse()).transpose()?;
        Ok(TagChange { repository: self.repository.parse()?, tag: self.tag.parse()?, digest, condition })
    }
}

fn odd_condition() -> OciError {
    refused("if_match is \"*\" or a digest in double quotes, if_none_match is \"*\", and only one is given".into())
}

fn refused(message: String) -> OciError {
    OciError::bad_request(Code::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<TagChange>, String> {
        let Object(read): Object<Transaction> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        checked(read.changes).map_err(|error| error.to_string())
    }

    #[test]
    fn changes_are_read_with_their_conditions() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let json = format!(
            r#"{{"changes":[{{"repository":"a/b","tag":"v1","digest":"{digest}","if_match":"\"{digest}\""}},{{"repository":"c","tag":"v2","if_none_match":"*"}}]}}"#
        );
        let changes = read(&json).unwrap();
        assert_eq!(changes[0].condition, Some(Condition::At(digest.parse().unwrap())));
        assert_eq!((changes[1].digest, changes[1].condition), (None, Some(Condition::Absent)));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        assert!(read(r#"{"changes":[]}"#).unwrap_err().contains("1 to 1000"));
        let twice = r#"{"changes":[{"repository":"a","tag":"v"},{"repository":"a","tag":"v"}]}"#;
        assert!(read(twice).unwrap_err().contains("change 1"));
        let bad = r#"{"changes":[{"repository":"a","tag":"v"},{"repository":"A","tag":"v"}]}"#;
        assert!(read(bad).unwrap_err().contains("change 1"));
        assert!(read(r#"{"changes":[{"repository":"a","tag":"v","if_match":"x"}]}"#).is_err());
        assert!(read(r#"{"changes":[{"repository":"a","tag":"v","digets":"x"}]}"#).is_err());
        assert!(read(r#"{"changes":[["a","v",null,null,null]]}"#).is_err(), "a list is no object");
        assert!(read(r#"[[{"repository":"a","tag":"v"}]]"#).is_err());
    }
}
