//! The imports between the files of the source: which file each import leads to, and the circles among them.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{code_of, members, paths_of, spell};

/// Files that import each other, each group in alphabetical order.
pub(crate) fn circles(sources: &BTreeMap<String, String>) -> Vec<Vec<String>> {
    let tree = ModuleTree::new(sources);
    let imports = tree.imports();
    let reachable: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|file| (file.as_str(), reach(&imports, file))).collect();
    let mut found: Vec<Vec<String>> = Vec::new();
    for (file, reached) in &reachable {
        let group: Vec<String> =
            reached.iter().filter(|other| reachable[*other].contains(file)).map(|f| (*f).to_owned()).collect();
        if group.len() > 1 && !found.contains(&group) {
            found.push(group);
        }
    }
    found
}

/// All files that `start` imports, directly or through others.
fn reach<'a>(imports: &'a BTreeMap<String, BTreeSet<String>>, start: &'a str) -> BTreeSet<&'a str> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(file) = open.pop() {
        for next in &imports[file] {
            if reached.insert(next.as_str()) {
                open.push(next);
            }
        }
    }
    reached
}

/// The files by the paths of their modules, and the names that each file re-exports.
struct ModuleTree {
    /// `["store", "types"]` is `store/types.rs` or `store/types/mod.rs`.
    files: BTreeMap<Vec<String>, String>,
    code: BTreeMap<Vec<String>, String>,
    /// Module and name, to the path that the name stands for.
    exports: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl ModuleTree {
    fn new(sources: &BTreeMap<String, String>) -> Self {
        let mut tree = Self { files: BTreeMap::new(), code: BTreeMap::new(), exports: BTreeMap::new() };
        for (file, text) in sources.iter().filter(|(file, _)| *file != "lib.rs" && *file != "main.rs") {
            let module = module_path(file);
            tree.code.insert(module.clone(), without_scopes(&code_of(text)));
            tree.files.insert(module, file.clone());
        }
        for (file, text) in sources {
            let module: Vec<String> = module_path(file);
            for (name, target) in renamed_modules(text) {
                tree.exports.insert((module.clone(), name), [module.as_slice(), &[target]].concat());
            }
        }
        for (module, code) in &tree.code {
            for path in exported(code) {
                let Some(path) = tree.absolute(module, &path) else { continue };
                if let Some(name) = path.last() {
                    tree.exports.insert((module.clone(), name.clone()), path.clone());
                }
            }
        }
        tree
    }

    /// The files that each file imports.
    fn imports(&self) -> BTreeMap<String, BTreeSet<String>> {
        let of = |module: &Vec<String>, code: &str| {
            let own = &self.files[module];
            let paths = paths_of(code, own, &[]);
            let found = paths.iter().filter_map(|path| self.file_of(&self.absolute(module, path)?));
            found.filter(|file| file != own).collect()
        };
        self.code.iter().map(|(module, code)| (self.files[module].clone(), of(module, code))).collect()
    }

    /// `path`, as the code of `module` has it, from the root of the crate. `None`: a path of another crate, or of a type.
    fn absolute(&self, module: &[String], path: &str) -> Option<Vec<String>> {
        let mut parts = path.split("::").peekable();
        let mut base = match *parts.peek()? {
            "crate" => {
                parts.next();
                Vec::new()
            }
            "self" => {
                parts.next();
                module.to_vec()
            }
            "super" => module.to_vec(),
            name => {
                let child = [module, &[name.to_owned()]].concat();
                self.files.contains_key(&child).then(|| module.to_vec())?
            }
        };
        while parts.next_if_eq(&"super").is_some() {
            base.pop();
        }
        base.extend(parts.map(str::to_owned));
        Some(base)
    }

    /// The file that defines what stands at `path`. A re-export leads to the file below.
    fn file_of(&self, path: &[String]) -> Option<String> {
        let length = (1..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let export = rest.first().and_then(|name| self.exports.get(&(module.to_vec(), name.clone())));
        match export {
            Some(target) if target != path => self.file_of(target),
            _ => self.files.get(module).cloned(),
        }
    }
}

/// `store/types.rs` and `store/types/mod.rs` are `["store", "types"]`.
fn module_path(file: &str) -> Vec<String> {
    file.trim_end_matches(".rs").trim_end_matches("/mod").split('/').map(str::to_owned).collect()
}

/// The modules that have another name than their file, by `#[path]`, with the names of the files.
fn renamed_modules(text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let renamed = |pair: &[&str]| {
        let file = pair[0].trim().strip_prefix("#[path = \"")?.strip_suffix(".rs\"]")?;
        let name = pair[1].trim().strip_prefix("mod ")?.strip_suffix(';')?;
        Some((name.to_owned(), file.to_owned()))
    };
    lines.windows(2).filter_map(renamed).collect()
}

/// `code` without the scopes of visibility: `pub(in crate::agent)` imports nothing.
fn without_scopes(code: &str) -> String {
    let mut parts = code.split("pub(in ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "pub" + part.split_once(')').map_or(part, |(_, rest)| rest))
}

/// The paths that `pub use` names.
fn exported(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for visibility in ["pub use ", "pub(crate) use ", "pub(super) use "] {
        for (at, _) in code.match_indices(visibility) {
            let tree = &code[at + visibility.len()..];
            let tree = tree.split_once(';').map_or(tree, |(tree, _)| tree);
            match tree.split_once("::") {
                Some((first, rest)) => spell(rest, first.trim(), &mut found),
                None => found.extend(members(tree).into_iter().map(str::to_owned)),
            }
        }
    }
    found
}

/// The names of types that more than one file or module defines.
pub(crate) fn shared_type_names(sources: &BTreeMap<String, String>) -> BTreeMap<String, usize> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for text in sources.values() {
        for line in code_of(text).lines() {
            let is_nested = line.starts_with(' ');
            let item = line.trim_start();
            let item = match item.strip_prefix("pub") {
                Some(rest) => rest.trim_start_matches("(crate)").trim_start_matches("(super)").trim_start(),
                None => item,
            };
            let Some((kind, rest)) = item.split_once(' ') else { continue };
            let defines = matches!(kind, "struct" | "enum" | "trait" | "union") || kind == "type" && !is_nested;
            if defines {
                let name = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                *names.entry(name.to_owned()).or_default() += 1;
            }
        }
    }
    names.retain(|_, count| *count > 1);
    names
}
