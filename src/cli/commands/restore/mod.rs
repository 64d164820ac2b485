//! `memsync restore`: brings back earlier texts, from the history of this machine and from the proxy.

mod deleted;
mod folder;
mod put;
mod single;

use crate::cli::app::App;
use crate::cli::args::RestoreArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::versions::{VersionName, parse_target};

pub(super) fn run(app: &App, args: &RestoreArgs) -> anyhow::Result<Exit> {
    let Some(text) = &args.path else { return deleted::list(app) };
    let target = parse_target(app, text)?;
    if let Some(to) = &args.to {
        target.place.require_file()?;
        return single::write_to(app, &target, to);
    }
    if let Some(moment) = args.at {
        if target.name != VersionName::Newest {
            return Err(CommandFailure::usage(format!("{text}: name a version or a time, not both")).into());
        }
        return folder::restore_time(app, &target.place, moment);
    }
    if target.name == VersionName::Newest && (target.place.is_dir()? || folder::is_deleted_folder(app, &target.place)?)
    {
        return folder::restore_deleted(app, &target.place);
    }
    target.place.require_file()?;
    single::restore(app, &target)
}
