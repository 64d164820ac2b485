//! The answers of the agent to the requests of the control API.

use std::path::Path;
use std::time::Duration;

use crate::local::FolderChange;

use super::change;
use super::commands::FolderCommand;
use super::control::{ControlRequest, ControlResponse, PlannedStep};
use super::status::SyncState;
use super::supervisor::Supervisor;

/// An approval that takes longer is answered with [`ControlResponse::Noted`].
const MAX_APPROVAL_WAIT: Duration = Duration::from_secs(2);

/// Answers one request.
pub(super) async fn answer(supervisor: &Supervisor, request: ControlRequest) -> ControlResponse {
    match request {
        ControlRequest::Status => status(supervisor),
        ControlRequest::Sync { folder } => match sync(supervisor, folder.as_deref()).await {
            true => status(supervisor),
            false => no_such_folder(),
        },
        ControlRequest::Wait { timeout_s } => {
            let wait = wait(supervisor);
            match timeout_s {
                // The status shows what is not done.
                Some(s) => drop(tokio::time::timeout(Duration::from_secs(s), wait).await),
                None => wait.await,
            }
            status(supervisor)
        }
        ControlRequest::Plan { folder } => plan(supervisor, folder.as_deref()).await,
        ControlRequest::Pause { for_s } => done_or_failed(supervisor.pause.pause(for_s)),
        ControlRequest::Resume => done_or_failed(supervisor.pause.resume()),
        ControlRequest::Held => ControlResponse::Held { plans: supervisor.halts() },
        ControlRequest::Approve { id, reject } => approve(supervisor, id, reject).await,
        ControlRequest::Reload => {
            supervisor.reload_request.notify_one();
            ControlResponse::Done
        }
        ControlRequest::Change { folder, change } => change_file(supervisor, &folder, change).await,
    }
}

fn status(supervisor: &Supervisor) -> ControlResponse {
    ControlResponse::Status(Box::new(supervisor.status()))
}

/// False: no such folder.
async fn sync(supervisor: &Supervisor, folder: Option<&Path>) -> bool {
    let syncs = supervisor.send_to(folder, FolderCommand::Sync);
    let has_folder = !syncs.is_empty();
    for (_, done) in syncs {
        // An error is a task that ended: nothing is left to wait for.
        let _ = done.await;
    }
    has_folder
}

/// Returns when every folder is in sync or needs a person.
async fn wait(supervisor: &Supervisor) {
    let mut changes = supervisor.changes();
    sync(supervisor, None).await;
    loop {
        let status = supervisor.status();
        let is_settled = status.folders.iter().all(|f| f.in_sync || f.needs_person());
        if status.in_sync || is_settled || changes.changed().await.is_err() {
            return;
        }
    }
}

async fn plan(supervisor: &Supervisor, folder: Option<&Path>) -> ControlResponse {
    let plans = supervisor.send_to(folder, FolderCommand::Plan);
    if plans.is_empty() {
        return no_such_folder();
    }
    let failed = |why, state| ControlResponse::Failed { why, state: Some(state) };
    let mut steps = Vec::new();
    for (root, plan) in plans {
        match plan.await {
            Ok(Ok(plan)) => steps.extend(PlannedStep::list(&root, &plan)),
            Ok(Err(why)) => return failed(format!("{}: {}", root.display(), why.reason), why.state),
            Err(_) => return failed(format!("{}: the agent stops", root.display()), SyncState::Stopped),
        }
    }
    ControlResponse::Plan { steps }
}

async fn approve(supervisor: &Supervisor, id: String, reject: bool) -> ControlResponse {
    let (answer, done) = tokio::sync::oneshot::channel();
    let command = FolderCommand::Approve { id: id.clone(), reject, answer };
    if supervisor.commands_for_halt(&id).is_some_and(|commands| commands.send(command).is_ok()) {
        match tokio::time::timeout(MAX_APPROVAL_WAIT, done).await {
            Ok(Ok(Ok(true))) => return ControlResponse::Done,
            Ok(Ok(Err(why))) => return ControlResponse::Failed { why, state: None },
            Ok(Ok(Ok(false)) | Err(_)) => {}
            Err(_) => return ControlResponse::Noted,
        }
    }
    ControlResponse::NotFound { what: format!("no plan {id} is held; `memsync approve --list` shows those that are") }
}

async fn change_file(supervisor: &Supervisor, folder: &Path, change: FolderChange) -> ControlResponse {
    let Some(commands) = supervisor.commands_of(folder) else {
        return ControlResponse::NotFound { what: format!("{}: the agent does not sync it", folder.display()) };
    };
    change::request(|request| commands.send(FolderCommand::Change(request)).is_ok(), folder, change).await
}

fn no_such_folder() -> ControlResponse {
    ControlResponse::NotFound { what: "no such folder is configured".to_owned() }
}

fn done_or_failed(result: Result<(), String>) -> ControlResponse {
    match result {
        Ok(()) => ControlResponse::Done,
        Err(why) => ControlResponse::Failed { why, state: None },
    }
}
