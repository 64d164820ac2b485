//! Three values of one kind: of the base, and of the two versions.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThreeWay<T> {
    pub(super) base: T,
    pub(super) local: T,
    pub(super) remote: T,
}

impl<T> ThreeWay<T> {
    pub(super) fn map<'a, U>(&'a self, mut change: impl FnMut(&'a T) -> U) -> ThreeWay<U> {
        ThreeWay { base: change(&self.base), local: change(&self.local), remote: change(&self.remote) }
    }

    /// Stops at an error of the base, else at the lesser error of the two versions.
    pub(super) fn try_map<'a, U, E: Ord>(
        &'a self,
        mut change: impl FnMut(&'a T) -> Result<U, E>,
    ) -> Result<ThreeWay<U>, E> {
        let base = change(&self.base)?;
        let (local, remote) = both(change(&self.local), change(&self.remote))?;
        Ok(ThreeWay { base, local, remote })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.base, &self.local, &self.remote].into_iter()
    }
}

impl<T: PartialEq> ThreeWay<T> {
    /// The value that both versions agree on: the changed one, if only one is changed. `None` if both are changed
    /// differently.
    pub(super) fn resolve(&self) -> Option<&T> {
        if self.local == self.remote || self.remote == self.base {
            Some(&self.local)
        } else if self.local == self.base {
            Some(&self.remote)
        } else {
            None
        }
    }
}

/// Two values, or the lesser of two errors, so that the order of the two does not matter.
pub(super) fn both<T, E: Ord>(one: Result<T, E>, other: Result<T, E>) -> Result<(T, T), E> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(one), Err(other)) => Err(one.min(other)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
    }
}
