//! `GET /api/v1/watch`: every change once and in order, from any revision that is kept, as server-sent events or by
//! long poll.

use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use actix_web::{HttpRequest, HttpResponse, get, web};
use bytes::{Bytes, BytesMut};
use flotilla_raft::Place;
use futures::{Stream, stream};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::audience::{Seat, Wanted};
use super::event::Event;
use super::feed::BATCH_MAX;
use crate::oci::error::{Code, OciError};
use crate::oci::{FLOTILLA_REVISION, Oci, decimal, past};
use crate::request::{header, query};

/// A comment line goes out when nothing else did for this long, so that nobody takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The longest that a poll waits.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The longest pattern over repositories, in bytes: what it compiles to is kept for each watcher.
const PATTERN_MAX: usize = 512;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `since` (or `Last-Event-ID`) is a revision, or the id of an event: what comes after it is told. Without it, what
/// comes from now on. `repository` is a pattern, `wait` (seconds) makes it a poll.
#[utoipa::path(
    params(
        ("since" = Option<String>, Query, description = "A revision, or the id of an event: what comes after it is told"),
        ("last-event-id" = Option<String>, Header, description = "As `since`, which it wins over"),
        ("repository" = Option<String>, Query, description = "A glob over repositories"),
        ("wait" = Option<u64>, Query, description = "Seconds; makes the request a poll"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", description = "Every change once and in order, until the connection ends"),
        (status = 410, body = Object, description = "The revision is forgotten; `detail.oldest` is not"),
        (status = 429, body = Object, description = "As many as may watch this node do"),
    )
)]
#[get("/api/v1/watch")]
pub(super) async fn watch(oci: web::Data<Oci>, request: HttpRequest) -> Result<HttpResponse, OciError> {
    let pattern = query(&request, "repository");
    let pattern = pattern.as_deref().unwrap_or("**");
    if pattern.is_empty() || pattern.len() > PATTERN_MAX {
        let message = format!("repository: a pattern has 1 to {PATTERN_MAX} bytes");
        return Err(OciError::bad_request(Code::Unsupported, message));
    }
    let wanted = Wanted::parse(pattern)
        .map_err(|error| OciError::bad_request(Code::Unsupported, format!("repository: {error}")))?;
    let wait = query(&request, "wait").map(|text| seconds(&text)).transpose()?;
    // Before the first look into state: what is applied after that look is in the feed.
    let seat = oci.feed.join(wanted).ok_or_else(|| OciError::busy("as many as may watch this node do"))?;
    let since = header(&request, LAST_EVENT_ID).map(Into::into).or_else(|| query(&request, "since"));
    let place = match since {
        Some(text) => {
            let place = place(&text)?;
            past::come(&oci, place.revision).await?;
            place
        }
        None => {
            oci.consensus.read_barrier().await?;
            Place::after(oci.consensus.applied_index())
        }
    };
    check_kept(&oci, place)?;
    let watcher = Watcher { oci, seat, place, is_behind: true };
    match wait {
        Some(wait) => watcher.poll(wait).await,
        None => Ok(HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/event-stream"))
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header((FLOTILLA_REVISION, decimal(place.revision)))
            .streaming(watcher.stream())),
    }
}

fn check_kept(oci: &Oci, place: Place) -> Result<(), OciError> {
    let oldest = oci.consensus.registry().history_floor()?;
    if is_kept(place, oldest) { Ok(()) } else { Err(past::forgotten(place.revision, oldest)) }
}

/// Whether all that follows is there. Of the oldest revision itself some changes are forgotten.
fn is_kept(place: Place, oldest: u64) -> bool {
    place >= Place::after(oldest)
}

/// `REVISION` or `REVISION.N`
fn place(text: &str) -> Result<Place, OciError> {
    let parsed = match text.split_once('.') {
        None => text.parse().ok().map(Place::after),
        Some((revision, number)) => {
            revision.parse().ok().zip(number.parse().ok()).map(|(revision, number)| Place { revision, number })
        }
    };
    parsed.ok_or_else(|| OciError::bad_request(Code::Unsupported, "since must be a revision, or the id of an event"))
}

fn seconds(text: &str) -> Result<Duration, OciError> {
    let refused = || OciError::bad_request(Code::Unsupported, "wait must be a number of seconds");
    Ok(Duration::from_secs(text.parse().map_err(|_| refused())?).min(WAIT_MAX))
}

struct Watcher {
    oci: web::Data<Oci>,
    seat: Seat,
    /// Everything up to here was told.
    place: Place,
    /// There is more in state than was told; else the feed brings what is new.
    is_behind: bool,
}

/// What came of waiting for changes.
#[derive(PartialEq, Eq)]
enum Next {
    /// Some were told.
    Told,
    /// None came in time.
    Nothing,
    /// The node is stopping, or what follows is forgotten: the client asks again, and hears which.
    End,
}

impl Watcher {
    /// Server-sent events, for as long as the client listens.
    fn stream(self) -> impl Stream<Item = Result<Bytes, OciError>> {
        stream::unfold(self, |mut watcher| async move {
            let mut text = BytesMut::new();
            let told = watcher.next(Instant::now() + KEEP_ALIVE, |event| text.extend_from_slice(&event.text)).await;
            match told {
                Next::Told => Some((Ok(text.freeze()), watcher)),
                Next::Nothing => Some((Ok(Bytes::from_static(b":\n\n")), watcher)),
                Next::End => None,
            }
        })
    }

    /// What came by now, or the first that comes; `next` is where the next poll goes on.
    async fn poll(mut self, wait: Duration) -> Result<HttpResponse, OciError> {
        let mut events = Vec::new();
        if self.next(Instant::now() + wait, |event| events.push(event.shown())).await == Next::End {
            check_kept(&self.oci, self.place)?;
            return Err(OciError::unavailable("this node is stopping"));
        }
        let next = self.place.to_string();
        let revision = decimal(self.place.revision);
        Ok(HttpResponse::Ok()
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header((FLOTILLA_REVISION, revision))
            .json(json!({ "next": next, "events": events })))
    }

    /// Tells what came by now, or waits for it.
    async fn next(&mut self, deadline: Instant, mut tell: impl FnMut(&Event)) -> Next {
        loop {
            let told = match self.is_behind {
                true => self.read_state(&mut tell).await,
                false => self.hear(deadline, &mut tell).await,
            };
            match told {
                Ok(0) => {}
                Ok(_) => return Next::Told,
                Err(next) => return next,
            }
        }
    }

    /// How many events it told.
    async fn read_state(&mut self, tell: &mut impl FnMut(&Event)) -> Result<usize, Next> {
        if self.oci.stop.is_cancelled() {
            return Err(Next::End);
        }
        let (registry, after) = (self.oci.consensus.registry().clone(), self.place);
        let Ok(Ok(changes)) = web::block(move || registry.changes(after, BATCH_MAX)).await else {
            return Err(Next::End);
        };
        // Only now: some may have been forgotten while they were read.
        if check_kept(&self.oci, self.place).is_err() {
            return Err(Next::End);
        }
        self.is_behind = changes.len() == BATCH_MAX;
        let mut told = 0;
        for (place, change) in changes {
            self.place = place;
            if self.seat.wanted.is_match(&change.repository) {
                tell(&Event::new(place, change));
                told += 1;
            }
        }
        Ok(told)
    }

    /// How many events it told of those that the feed brings.
    async fn hear(&mut self, deadline: Instant, tell: &mut impl FnMut(&Event)) -> Result<usize, Next> {
        let passed = self.oci.feed.place();
        let mut events = Vec::new();
        tokio::select! {
            biased;
            _ = self.seat.events.recv_many(&mut events, BATCH_MAX) => {}
            () = self.oci.stop.cancelled() => return Err(Next::End),
            () = sleep_until(deadline) => {
                // What was wanted up to there lay in the channel before.
                self.place = self.place.max(passed);
                return Err(Next::Nothing);
            }
        }
        if events.is_empty() {
            // It did not keep up: state tells the rest.
            let seat = self.oci.feed.join(self.seat.wanted.clone());
            self.seat = seat.ok_or(Next::End)?;
            self.is_behind = true;
        }
        let mut told = 0;
        // State may have told some of them already.
        for event in events {
            if event.place > self.place {
                self.place = event.place;
                tell(&event);
                told += 1;
            }
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_an_event_of_the_oldest_revision_may_be_forgotten() {
        assert!(is_kept(place("7").unwrap(), 7) && is_kept(place("8.0").unwrap(), 7));
        assert!(!is_kept(place("7.2").unwrap(), 7) && !is_kept(place("6").unwrap(), 7));
        assert!(is_kept(place("0").unwrap(), 0), "nothing is forgotten yet");
    }

    #[test]
    fn a_place_is_a_revision_or_the_id_of_an_event() {
        assert_eq!(place("7").unwrap(), Place::after(7));
        assert_eq!(place("7.2").unwrap(), Place { revision: 7, number: 2 });
        assert!(place("7.2").unwrap() < place("7").unwrap(), "a revision alone means all of it");
        for id in ["7.2", "8"] {
            assert_eq!(place(id).unwrap().to_string(), id, "what a poll answers with is understood");
        }
        for odd in ["", "x", "-1", "7.", ".2", "7.2.1"] {
            assert!(place(odd).is_err(), "{odd}");
        }
    }
}
