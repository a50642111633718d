//! Who calls: verdicts about credentials, kept until they expire or are revoked.
//! Must never keep a credential in clear, nor decide about one by itself; Python does, once each.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use blake3::Hash;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::events::{Event, Outbox};
use crate::framing::{Known as Field, RequestHead};
use crate::reply::Reject;

/// Longest credential that is looked at; identity providers issue tokens of a few KiB.
const CREDENTIAL_BYTES_MAX: usize = 16 << 10;
const VERDICTS_MAX: usize = 65_536;
/// Refusals have a table of their own, so that a flood of wrong keys displaces no good one.
const REFUSALS_MAX: usize = 8_192;
const PENDING_MAX: usize = 4_096;
const WAITERS_MAX: usize = 1_024;
/// How long a call waits for a verdict.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);
/// A verdict not given after this time is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// A credential on its way to Python; shows itself to nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(String);

impl Credential {
    /// The credential itself; never to be logged or kept.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Credential(***)")
    }
}

/// What Python found out about a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Name of the caller in records.
    pub principal: Arc<str>,
    /// Under which the verdict can be revoked, such as the key's id.
    pub tag: Box<str>,
    /// Where the caller may call: "" everywhere, `tenant`, or `tenant/namespace`.
    pub grants: Vec<Box<str>>,
}

impl Verdict {
    /// Whether a grant covers `tenant/namespace/function`; names are compared whole.
    fn covers(&self, key: &str) -> bool {
        self.grants.iter().any(|grant| {
            grant.is_empty()
                || key
                    .strip_prefix(&**grant)
                    .is_some_and(|rest| rest.starts_with('/'))
        })
    }
}

type Answer = Result<Arc<Verdict>, Reject>;

#[derive(Debug)]
struct Known {
    answer: Answer,
    until: Instant,
}

#[derive(Debug)]
struct Pending {
    asked: Instant,
    waiters: Vec<oneshot::Sender<Answer>>,
}

/// The verdicts of one data plane. The hashes are keyed with a number of this process only, and
/// blake3 compares them in constant time.
pub(crate) struct AuthTable {
    key: Option<[u8; blake3::KEY_LEN]>,
    verdicts: RwLock<HashMap<Hash, Known>>,
    refusals: RwLock<HashMap<Hash, Known>>,
    pending: Mutex<HashMap<Hash, Pending>>,
}

/// Who makes a call.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Nobody is asked: the plane runs without authentication.
    Open,
    /// No credential came.
    Anonymous,
    /// A credential that Python knows.
    Known(Arc<Verdict>),
}

impl Caller {
    pub(crate) fn principal(&self) -> Option<Arc<str>> {
        match self {
            Self::Open => None,
            Self::Anonymous => Some(Arc::from("anonymous")),
            Self::Known(verdict) => Some(verdict.principal.clone()),
        }
    }

    /// Whether this caller may call the function; `public` says whether everybody may.
    pub(crate) fn may_call(&self, key: &str, public: impl Fn() -> bool) -> Result<(), Reject> {
        match self {
            Self::Open => Ok(()),
            Self::Known(verdict) if verdict.covers(key) => Ok(()),
            Self::Known(_) if public() => Ok(()),
            Self::Known(verdict) => Err(Reject::new(
                403,
                "forbidden",
                format!("{} may not call {key}", verdict.principal),
            )),
            Self::Anonymous if public() => Ok(()),
            Self::Anonymous => Err(unauthenticated("send `Authorization: Bearer` and a key")),
        }
    }
}

fn unauthenticated(message: &'static str) -> Reject {
    Reject::new(401, "unauthenticated", message)
}

impl AuthTable {
    /// A table that lets everybody in when there is no `key`.
    pub(crate) fn new(key: Option<[u8; blake3::KEY_LEN]>) -> Self {
        Self {
            key,
            verdicts: RwLock::default(),
            refusals: RwLock::default(),
            pending: Mutex::default(),
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<Hash, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who sent a request. The credential is taken out of it: it is the platform's and no worker
    /// may see it. Waits when Python has to be asked.
    pub(crate) async fn identify(
        &self,
        head: &mut RequestHead,
        outbox: &Outbox,
    ) -> Result<Caller, Reject> {
        let Some(key) = &self.key else {
            return Ok(Caller::Open);
        };
        let Some(value) = head.get(Field::Authorization) else {
            return Ok(Caller::Anonymous);
        };
        if head.count(Field::Authorization) > 1 {
            return Err(Reject::bad_request("Authorization came more than once"));
        }
        let credential = bearer(value)?;
        let hash = blake3::keyed_hash(key, credential.as_bytes());
        let answer = match self.known(&hash) {
            Some(answer) => answer,
            None => self.ask(hash, credential, outbox).await,
        };
        head.remove(Field::Authorization);
        answer.map(Caller::Known)
    }

    fn known(&self, hash: &Hash) -> Option<Answer> {
        let now = Instant::now();
        for table in [&self.verdicts, &self.refusals] {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = table.get(hash)
                && known.until > now
            {
                return Some(known.answer.clone());
            }
        }
        None
    }

    /// Asks Python, or joins those who wait for the same verdict.
    async fn ask(&self, hash: Hash, credential: &str, outbox: &Outbox) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let ask = {
            let mut pending = self.pending();
            if pending.len() >= PENDING_MAX && !pending.contains_key(&hash) {
                return Err(overloaded());
            }
            let now = Instant::now();
            let entry = pending.entry(hash).or_insert_with(|| Pending {
                asked: now - ASK_AGAIN,
                waiters: Vec::new(),
            });
            entry.waiters.retain(|waiter| !waiter.is_closed());
            if entry.waiters.len() >= WAITERS_MAX {
                return Err(overloaded());
            }
            entry.waiters.push(sender);
            let due = now.duration_since(entry.asked) >= ASK_AGAIN;
            if due {
                entry.asked = now;
            }
            due
        };
        if ask {
            outbox.push(Event::NeedVerdict {
                digest: *hash.as_bytes(),
                credential: Credential(credential.to_owned()),
            });
        }
        match tokio::time::timeout(VERDICT_TIMEOUT, receiver).await {
            Ok(Ok(answer)) => answer,
            _ => {
                let mut pending = self.pending();
                if let Some(entry) = pending.get_mut(&hash) {
                    entry.waiters.retain(|waiter| !waiter.is_closed());
                    if entry.waiters.is_empty() {
                        pending.remove(&hash);
                    }
                }
                Err(overloaded())
            }
        }
    }

    /// Python's answer about one credential, in force for `lifetime`.
    pub(crate) fn settle(&self, digest: [u8; 32], answer: Answer, lifetime: Duration) {
        let hash = Hash::from_bytes(digest);
        let known = Known {
            answer: answer.clone(),
            until: Instant::now() + lifetime,
        };
        let (table, most) = match answer {
            Ok(_) => (&self.verdicts, VERDICTS_MAX),
            Err(_) => (&self.refusals, REFUSALS_MAX),
        };
        {
            let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
            make_room(&mut table, most);
            table.insert(hash, known);
        }
        let waiters = self.pending().remove(&hash).map(|entry| entry.waiters);
        for waiter in waiters.into_iter().flatten() {
            // Fails for a call that has gone.
            let _ = waiter.send(answer.clone());
        }
    }

    /// Drops every verdict under this tag; the next call with its credential asks again.
    pub(crate) fn revoke(&self, tag: &str) -> usize {
        let mut table = self
            .verdicts
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let before = table.len();
        table.retain(|_, known| known.answer.as_ref().is_ok_and(|it| &*it.tag != tag));
        before - table.len()
    }

    /// How many verdicts and refusals are kept.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let verdicts = self.verdicts.read().unwrap_or_else(PoisonError::into_inner);
        let refusals = self.refusals.read().unwrap_or_else(PoisonError::into_inner);
        (verdicts.len(), refusals.len())
    }
}

fn overloaded() -> Reject {
    let message = "the credential could not be checked in time";
    Reject::new(503, "unavailable", message).retry_after(1000)
}

fn make_room(table: &mut HashMap<Hash, Known>, most: usize) {
    if table.len() < most {
        return;
    }
    let now = Instant::now();
    table.retain(|_, known| known.until > now);
    if table.len() >= most {
        // Any one will do: what is dropped is asked again.
        let dropped: Vec<Hash> = table.keys().take(most / 8 + 1).copied().collect();
        for hash in dropped {
            table.remove(&hash);
        }
    }
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(value: &[u8]) -> Result<&str, Reject> {
    let refused = || unauthenticated("expected `Authorization: Bearer` and a key");
    let text = std::str::from_utf8(value).map_err(|_| refused())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(refused)?;
    let token = token.trim_matches(' ');
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !scheme.eq_ignore_ascii_case("bearer")
        || token.is_empty()
        || token.len() > CREDENTIAL_BYTES_MAX
        || !token.bytes().all(legal)
    {
        return Err(refused());
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(tag: &str, grants: &[&str]) -> Arc<Verdict> {
        Arc::new(Verdict {
            principal: Arc::from("p"),
            tag: tag.into(),
            grants: grants.iter().map(|&grant| grant.into()).collect(),
        })
    }

    #[test]
    fn names_are_compared_whole() {
        for (grant, key, covered) in [
            ("", "t/n/f", true),
            ("t", "t/n/f", true),
            ("t", "t-large/n/f", false),
            ("t/n", "t/n/f", true),
            ("t/n", "t/n1/f", false),
            ("t/n/f", "t/n/f", false),
            ("n", "t/n/f", false),
        ] {
            assert_eq!(verdict("", &[grant]).covers(key), covered, "{grant} {key}");
        }
        assert!(!verdict("", &[]).covers("t/n/f"));
    }

    #[test]
    fn only_a_bearer_token_is_a_credential() {
        assert_eq!(bearer(b"Bearer ix_1").ok(), Some("ix_1"));
        assert_eq!(bearer(b"bearer  a.b.c= ").ok(), Some("a.b.c="));
        for wrong in [
            &b"ix_1"[..],
            b"Basic aXg=",
            b"Bearer",
            b"Bearer ",
            b"Bearer a b",
            b"Bearer a,b",
            b"Bearer \xff",
            b"Bearer a\tb",
        ] {
            assert_eq!(bearer(wrong).map_err(|error| error.status), Err(401));
        }
    }

    fn head(token: &str) -> RequestHead {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
        RequestHead::parse(text.into_bytes()).expect("a good head")
    }

    #[tokio::test(start_paused = true)]
    async fn python_is_asked_once_until_the_verdict_expires_or_is_revoked() {
        let table = AuthTable::new(Some([7; 32]));
        let outbox = Outbox::new().expect("a descriptor");
        let asked = || -> Option<[u8; 32]> {
            match outbox.take_events().pop()? {
                Event::NeedVerdict { digest, .. } => Some(digest),
                other => panic!("{other:?}"),
            }
        };
        let ask = async |token: &str| {
            let mut head = head(token);
            let caller = table.identify(&mut head, &outbox).await;
            assert_eq!(head.get(Field::Authorization), None);
            caller.map(|caller| caller.principal())
        };
        let answer = async {
            tokio::task::yield_now().await;
            let digest = asked().expect("a question");
            assert!(asked().is_none(), "one question for both calls");
            let minute = Duration::from_secs(60);
            table.settle(digest, Ok(verdict("k1", &[""])), minute);
        };
        let (first, second, ()) = tokio::join!(ask("a"), ask("a"), answer);
        assert_eq!(first, Ok(Some(Arc::from("p"))));
        assert_eq!(second, first);
        assert_eq!(ask("a").await, first);
        assert!(asked().is_none());
        assert_eq!((table.revoke("other"), table.revoke("k1")), (0, 1));
        let refused = async {
            tokio::task::yield_now().await;
            let no = unauthenticated("no");
            table.settle(
                asked().expect("a question"),
                Err(no),
                Duration::from_secs(1),
            );
        };
        let (found, ()) = tokio::join!(ask("a"), refused);
        assert_eq!(found, Err(unauthenticated("no")));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(ask("a").await.map_err(|error| error.status), Err(503));
        assert!(asked().is_some());
    }

    #[tokio::test]
    async fn tables_are_bounded() {
        let table = AuthTable::new(Some([7; 32]));
        for number in 0..REFUSALS_MAX as u64 + 10 {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            let error = Err(unauthenticated("no"));
            table.settle(digest, error, Duration::from_secs(60));
        }
        table.settle([9; 32], Ok(verdict("k", &[])), Duration::from_secs(60));
        let (verdicts, refusals) = table.sizes();
        assert!(verdicts == 1 && refusals <= REFUSALS_MAX, "{refusals}");
    }
}
