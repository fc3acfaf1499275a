//! From faults of the io modules to the words of the journal.

use crate::domain::Sid;
use crate::engine::Input;
use crate::events::{FaultClass, FileKind, LossEvidence, Stage};
use crate::ownership::NotHeld;
use crate::shape_log;

/// The input that tells the engine of a storage fault.
#[must_use]
pub fn input(fault: shape_log::StorageFault, sid: Option<Sid>) -> Input {
    Input::StorageFault { class: class(fault.class), stage: stage(fault.stage), file: file(fault.file), sid }
}

/// Bytes that were durable are wrong, or gone: evidence against the file that was read.
#[must_use]
pub fn is_damage(fault: &shape_log::StorageFault) -> bool {
    match fault.class {
        shape_log::FaultClass::Corrupt { .. } => true,
        shape_log::FaultClass::Vanished
        | shape_log::FaultClass::NoSpace
        | shape_log::FaultClass::Denied
        | shape_log::FaultClass::Transient { .. } => false,
    }
}

fn class(class: shape_log::FaultClass) -> FaultClass {
    match class {
        shape_log::FaultClass::Corrupt { .. } => FaultClass::Corrupt,
        shape_log::FaultClass::Vanished => FaultClass::Vanished,
        shape_log::FaultClass::NoSpace => FaultClass::NoSpace,
        shape_log::FaultClass::Denied => FaultClass::Denied,
        shape_log::FaultClass::Transient { errno } => FaultClass::Transient { errno },
    }
}

fn stage(stage: shape_log::Stage) -> Stage {
    match stage {
        shape_log::Stage::Create | shape_log::Stage::Open => Stage::Open,
        shape_log::Stage::Read => Stage::Read,
        shape_log::Stage::Write | shape_log::Stage::Truncate => Stage::Write,
        shape_log::Stage::Sync => Stage::Sync,
        shape_log::Stage::Remove => Stage::Rename,
    }
}

fn file(file: shape_log::FileKind) -> FileKind {
    match file {
        shape_log::FileKind::Directory => FileKind::Directory,
        shape_log::FileKind::Definition => FileKind::Definition,
        shape_log::FileKind::Snapshot => FileKind::Snapshot,
        shape_log::FileKind::Log => FileKind::ShapeLog,
        shape_log::FileKind::Index => FileKind::Index,
    }
}

/// What told that the directory is no longer owned.
#[must_use]
pub fn evidence(lost: &NotHeld) -> LossEvidence {
    match lost {
        NotHeld::DirectoryVanished | NotHeld::Unverified(_) => LossEvidence::DirectoryVanished,
        NotHeld::InodeChanged => LossEvidence::InodeChanged,
        NotHeld::EpochHigher { .. } => LossEvidence::EpochHigher,
    }
}
