//! The ways to start a pod and how long they take: as seen, as told, or as assumed.
//! They must never decide anything; `ways` and `room` compare them.

use super::tasks::SnapshotTier;

/// How a pod became ready for the call that waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StartKind {
    Warm,
    Resume,
    Snapshot,
    Cold,
}

impl StartKind {
    /// The kind of that name; a worker that is warm was not started.
    pub fn named(name: &str) -> Option<Self> {
        let started = [StartKind::Resume, StartKind::Snapshot, StartKind::Cold];
        started.into_iter().find(|kind| kind.name() == name)
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            StartKind::Warm => "warm",
            StartKind::Resume => "resume",
            StartKind::Snapshot => "snapshot",
            StartKind::Cold => "cold",
        }
    }
}

/// How long the ways to start take; 0 = not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct StartTimes {
    pub cold_ms: u64,
    pub resume_ms: u64,
    /// From a snapshot in the node's memory, and in a file of the node.
    pub host_ms: u64,
    pub file_ms: u64,
}

impl StartTimes {
    /// What is assumed of a function that nothing is known of: a model of some GiB.
    const ASSUMED: StartTimes = StartTimes {
        cold_ms: 22_700,
        resume_ms: 1_000,
        host_ms: 1_000,
        file_ms: 6_000,
    };

    /// These times where they are known, otherwise what is assumed: of a snapshot, that it does not
    /// take longer than a start from nothing does.
    pub fn or_assumed(self) -> StartTimes {
        let known = |ms, assumed| if ms == 0 { assumed } else { ms };
        let cold_ms = known(self.cold_ms, Self::ASSUMED.cold_ms);
        StartTimes {
            cold_ms,
            resume_ms: known(self.resume_ms, Self::ASSUMED.resume_ms),
            host_ms: known(self.host_ms, Self::ASSUMED.host_ms.min(cold_ms)),
            file_ms: known(self.file_ms, Self::ASSUMED.file_ms.min(cold_ms)),
        }
    }

    /// A start from a snapshot of that tier, or from nothing.
    pub fn of_start(&self, tier: Option<SnapshotTier>) -> u64 {
        match tier {
            None => self.cold_ms,
            Some(SnapshotTier::Host) => self.host_ms,
            Some(SnapshotTier::File) => self.file_ms,
        }
    }

    /// A start of this kind took that long: a quarter of the way towards it.
    pub fn learn(&mut self, kind: StartKind, tier: Option<SnapshotTier>, took_ms: u64) {
        let time = match kind {
            StartKind::Warm => return,
            StartKind::Snapshot if tier == Some(SnapshotTier::Host) => &mut self.host_ms,
            StartKind::Snapshot => &mut self.file_ms,
            StartKind::Resume => &mut self.resume_ms,
            StartKind::Cold => &mut self.cold_ms,
        };
        *time = match *time {
            0 => took_ms.max(1),
            known => ((3 * known + took_ms) / 4).max(1),
        };
    }
}
