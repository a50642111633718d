//! The one pod state machine: every legal step of a pod's life is in `next`, everything else is an
//! error. It must never know who drives it; the scheduler, the agent (through Python) and the
//! documents read it.

use std::fmt;

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),+ }

        impl $name {
            /// Every value, in the order of a pod's life.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The name used on the wire and in documents.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            /// The value of a wire name.
            pub fn parse(text: &str) -> Option<$name> {
                match text { $($text => Some($name::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.name())
            }
        }
    };
}

named_enum! {
    /// Where a pod is in its life.
    State {
        Init = "Init",
        Creating = "Creating",
        Loading = "Loading",
        Ready = "Ready",
        Idle = "Idle",
        Working = "Working",
        Snapshotting = "Snapshotting",
        Parking = "Parking",
        Standby = "Standby",
        Resuming = "Resuming",
        Terminating = "Terminating",
        Terminated = "Terminated",
        Failed = "Failed",
    }
}

named_enum! {
    /// What moves a pod from one state to the next.
    Event {
        Create = "create",
        Started = "started",
        ProbeOk = "probe_ok",
        Admit = "admit",
        Lease = "lease",
        GiveBack = "give_back",
        Snapshot = "snapshot",
        SnapshotDone = "snapshot_done",
        Park = "park",
        Parked = "parked",
        Resume = "resume",
        Terminate = "terminate",
        Exited = "exited",
        Fail = "fail",
    }
}

impl State {
    /// Live pods may hold resources and have not been told to end.
    pub fn is_live(self) -> bool {
        !matches!(self, State::Terminating | State::Terminated | State::Failed)
    }

    /// Final states are never left.
    pub fn is_final(self) -> bool {
        matches!(self, State::Terminated | State::Failed)
    }

    /// A running replica serves calls or will without being resumed first.
    pub fn is_running(self) -> bool {
        self.is_live() && !matches!(self, State::Parking | State::Standby)
    }

    /// The pod is on its way to `Ready`.
    pub fn is_starting(self) -> bool {
        matches!(
            self,
            State::Init | State::Creating | State::Loading | State::Resuming
        )
    }
}

/// A step that the table does not list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllegalTransition {
    /// The state the pod is in.
    pub state: State,
    /// The event that does not apply there.
    pub event: Event,
}

impl fmt::Display for IllegalTransition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "a pod that is {} does not take the event {}",
            self.state, self.event
        )
    }
}

impl std::error::Error for IllegalTransition {}

/// The state after `event`, or the pair as an error when it is not in the table.
pub fn next(state: State, event: Event) -> Result<State, IllegalTransition> {
    use Event as E;
    use State as S;
    Ok(match (state, event) {
        (S::Init, E::Create) => S::Creating,
        (S::Creating, E::Started) => S::Loading,
        (S::Loading | S::Resuming, E::ProbeOk) => S::Ready,
        (S::Ready, E::Admit) => S::Idle,
        (S::Idle, E::Lease) => S::Working,
        (S::Working, E::GiveBack) => S::Idle,
        (S::Init | S::Standby, E::Resume) => S::Resuming,
        (S::Ready | S::Idle, E::Snapshot) => S::Snapshotting,
        (S::Snapshotting, E::SnapshotDone) => S::Idle,
        (S::Idle, E::Park) => S::Parking,
        (S::Parking, E::Parked) => S::Standby,
        (S::Terminating, E::Exited) => S::Terminated,
        (live, E::Terminate) if live.is_live() => S::Terminating,
        (live, E::Fail | E::Exited) if live.is_live() => S::Failed,
        _ => return Err(IllegalTransition { state, event }),
    })
}

/// The whole table as rows `(from, event, to)`, ordered by state, then event.
pub fn table() -> Vec<(State, Event, State)> {
    let mut rows = Vec::new();
    for &state in State::ALL {
        for &event in Event::ALL {
            if let Ok(to) = next(state, event) {
                rows.push((state, event, to));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_are_never_left() {
        for (from, _, _) in table() {
            assert!(!from.is_final(), "{from} is left");
        }
    }

    #[test]
    fn names_round_trip() {
        for &state in State::ALL {
            assert_eq!(State::parse(state.name()), Some(state));
        }
        for &event in Event::ALL {
            assert_eq!(Event::parse(event.name()), Some(event));
        }
        assert_eq!(State::parse("idle"), None);
    }

    #[test]
    fn only_idle_pods_are_leased_or_parked() {
        for (from, event, _) in table() {
            if matches!(event, Event::Lease | Event::Park) {
                assert_eq!(from, State::Idle);
            }
        }
    }
}
