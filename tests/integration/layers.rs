//! The structure of the source: a module uses only modules below it, and no two modules use each other, at any level.
//!
//! A Rust parser reads the source, so no line is missed. Uses in test code do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Meta, UseTree, Visibility};

/// The path of a module from the crate root.
type Module = Vec<String>;

/// One use of a module by another.
#[derive(Debug, Clone)]
struct Use {
    from: Module,
    to: Module,
    path: String,
}

/// The crate's modules, and their uses of each other.
#[derive(Debug, Default)]
struct Crate {
    modules: BTreeSet<Module>,
    uses: Vec<Use>,
    /// Each `pub use` of an item from a module that is not below this one.
    passed_on: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads the crate whose root file is at `src/lib.rs` below `folder`.
fn read(folder: &Path) -> Crate {
    let mut parsed = Vec::new();
    collect(
        &folder.join("src/lib.rs"),
        &folder.join("src"),
        &[],
        &mut parsed,
    );
    let modules: BTreeSet<Module> = parsed.iter().map(|(module, _)| module.clone()).collect();
    let mut found = Crate {
        modules,
        ..Crate::default()
    };
    for (module, items) in &parsed {
        let mut reader = Reader {
            module,
            modules: &found.modules,
            uses: Vec::new(),
            passed_on: Vec::new(),
        };
        for item in items {
            reader.visit_item(item);
        }
        let (uses, passed_on) = (reader.uses, reader.passed_on);
        found.uses.extend(uses);
        found.passed_on.extend(passed_on);
    }
    found
}

/// Collects the items in a file and in the files of its modules.
fn collect(file: &Path, below: &Path, module: &[String], into: &mut Vec<(Module, Vec<Item>)>) {
    let text = fs::read_to_string(file).unwrap();
    let parsed = syn::parse_file(&text);
    assert!(parsed.is_ok(), "{}: {:?}", file.display(), parsed.err());
    let parsed = parsed.unwrap();
    for item in &parsed.items {
        let Item::Mod(ItemMod {
            attrs,
            ident,
            content: None,
            ..
        }) = item
        else {
            continue;
        };
        if is_of_tests(attrs) {
            continue;
        }
        let name = ident.to_string();
        let inner = [module, std::slice::from_ref(&name)].concat();
        collect(
            &below.join(format!("{name}.rs")),
            &below.join(&name),
            &inner,
            into,
        );
    }
    into.push((module.to_vec(), parsed.items));
}

/// Returns whether an item with these attributes is built only for tests or for the fuzzer.
fn is_of_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let words = list.tokens.to_string();
            words == "test" || words.contains("fuzzing")
        }
        _ => false,
    })
}

/// Collects the uses in one module.
struct Reader<'c> {
    module: &'c Module,
    modules: &'c BTreeSet<Module>,
    uses: Vec<Use>,
    passed_on: Vec<String>,
}

impl Reader<'_> {
    /// Records a path, as far as it leads through modules.
    fn note(&mut self, path: &[String]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let (mut at, mut rest): (Module, &[String]) = match first.as_str() {
            "crate" => (Vec::new(), rest),
            "self" => (self.module.clone(), rest),
            "super" => (
                self.module
                    .split_last()
                    .map_or_else(Vec::new, |(_, above)| above.to_vec()),
                rest,
            ),
            _ => return,
        };
        while let Some(("super", more)) = rest
            .split_first()
            .map(|(first, more)| (first.as_str(), more))
        {
            at.pop();
            rest = more;
        }
        for name in rest {
            let next = [at.as_slice(), std::slice::from_ref(name)].concat();
            if !self.modules.contains(&next) {
                break;
            }
            at = next;
        }
        self.uses.push(Use {
            from: self.module.clone(),
            to: at,
            path: path.join("::"),
        });
    }

    fn tree(&mut self, before: &[String], tree: &UseTree, passes_on: bool) {
        match tree {
            UseTree::Path(path) => {
                let before = [before, &[path.ident.to_string()]].concat();
                self.tree(&before, &path.tree, passes_on);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(before, tree, passes_on);
                }
            }
            UseTree::Name(name) => self.leaf(before, &name.ident.to_string(), passes_on),
            UseTree::Rename(rename) => self.leaf(before, &rename.ident.to_string(), passes_on),
            UseTree::Glob(_) => self.leaf(before, "*", passes_on),
        }
    }

    fn leaf(&mut self, before: &[String], name: &str, passes_on: bool) {
        let path = [before, &[name.to_owned()]].concat();
        if passes_on && matches!(path.first().map(String::as_str), Some("crate" | "super")) {
            let module = self.module.join("::");
            self.passed_on
                .push(format!("{module}: pub use {}", path.join("::")));
        }
        self.note(&path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_of_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let passes_on = !matches!(item.vis, Visibility::Inherited);
        self.tree(&[], &item.tree, passes_on);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|one| one.ident.to_string())
            .collect();
        self.note(&names);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // The path in `pub(in crate::…)` is not a use.
    }
}

impl Crate {
    /// For each module, the uses between the modules directly below it, with one example each.
    fn levels(&self) -> BTreeMap<Module, BTreeMap<(String, String), &Use>> {
        let mut levels: BTreeMap<Module, BTreeMap<_, _>> = BTreeMap::new();
        for used in &self.uses {
            let common = used
                .from
                .iter()
                .zip(&used.to)
                .take_while(|(a, b)| a == b)
                .count();
            if let (Some(a), Some(b)) = (used.from.get(common), used.to.get(common)) {
                let above = used.from.iter().take(common).cloned().collect();
                let level = levels.entry(above).or_default();
                level.entry((a.clone(), b.clone())).or_insert(used);
            }
        }
        levels
    }

    /// Cycles of modules that use each other, directly or indirectly, with the uses that cause them.
    fn circles(&self) -> Vec<String> {
        let mut circles = Vec::new();
        for (above, edges) in self.levels() {
            for ((a, b), used) in &edges {
                if reaches(&edges, b, a) {
                    circles.push(format!(
                        "in `{}`: {} uses `{}`, and `{b}` uses `{a}`",
                        above.join("::"),
                        used.from.join("::"),
                        used.path
                    ));
                }
            }
        }
        circles
    }
}

fn reaches(edges: &BTreeMap<(String, String), &Use>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut next = vec![from];
    while let Some(at) = next.pop() {
        if at == to {
            return true;
        }
        let used = edges
            .keys()
            .filter(|(a, _)| a == at)
            .map(|(_, b)| b.as_str());
        next.extend(used.filter(|b| seen.insert(b)));
    }
    false
}

/// The top-level modules in the order of the architecture page: each uses only modules that come after it.
fn top_modules() -> Vec<String> {
    let map = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `src/"));
    let names = rows.filter_map(|row| row.split_once('`'));
    names
        .map(|(name, _)| name.trim_end_matches(".rs").to_owned())
        .collect()
}

#[test]
fn a_module_uses_only_modules_below_it() {
    let found = read(root());
    let modules = top_modules();
    let place = |module: &str| modules.iter().position(|one| one == module);
    let levels = found.levels();
    let edges = levels.get(&Module::new()).unwrap();
    let upwards = edges
        .iter()
        .filter(|((a, b), _)| match (place(a), place(b)) {
            (Some(a), Some(b)) => b < a,
            _ => true,
        });
    let upwards: Vec<String> = upwards
        .map(|((a, b), used)| {
            format!(
                "`{a}` uses `{b}`: {} has `{}`",
                used.from.join("::"),
                used.path
            )
        })
        .collect();
    assert_eq!(upwards, [""; 0]);
    assert!(edges.len() > 50, "{} uses are seen", edges.len());
}

#[test]
fn no_modules_use_each_other() {
    assert_eq!(read(root()).circles(), [""; 0]);
}

#[test]
fn a_name_is_used_from_where_it_is_defined() {
    assert_eq!(read(root()).passed_on, [""; 0]);
}

/// Type names with more than one meaning, and the reason for each.
const SHARED_NAMES: [(&str, &str); 0] = [];

#[test]
fn a_type_name_stands_for_one_thing() {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut parsed = Vec::new();
    collect(
        &root().join("src/lib.rs"),
        &root().join("src"),
        &[],
        &mut parsed,
    );
    for (module, items) in &parsed {
        for item in items {
            let (ident, attributes) = match item {
                Item::Enum(item) => (&item.ident, &item.attrs),
                Item::Struct(item) => (&item.ident, &item.attrs),
                Item::Trait(item) => (&item.ident, &item.attrs),
                Item::Type(item) => (&item.ident, &item.attrs),
                _ => continue,
            };
            if !is_of_tests(attributes) {
                names
                    .entry(ident.to_string())
                    .or_default()
                    .push(module.join("::"));
            }
        }
    }
    assert!(names.len() > 400, "{} names are seen", names.len());
    names.retain(|name, modules| {
        modules.len() > 1 && !SHARED_NAMES.iter().any(|(shared, _)| shared == name)
    });
    assert_eq!(names, BTreeMap::new());
}

#[test]
fn a_circle_is_seen_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join("src").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a; mod b; mod c;");
    write(
        "a.rs",
        "mod x; mod y;\n#[cfg(test)]\nmod tests { use crate::c::C; }",
    );
    write(
        "a/x.rs",
        "#[cfg(test)] use super::y::Y;\nfn x() { super::y::y() }",
    );
    write("a/y.rs", "pub fn y() { if true { crate::b::b() } }");
    write("b.rs", "pub fn b() {}");
    write("c.rs", "pub use crate::b::b;\nfn c() { crate::a::f() }");
    let found = read(folder.path());
    assert_eq!(found.circles(), [""; 0]);
    assert_eq!(found.passed_on, ["c: pub use crate::b::b"]);
    write("b.rs", "pub fn b() { let _ = Vec::<crate::c::C>::new(); }");
    write(
        "a/y.rs",
        "#[cfg(test)] mod tests {}\nuse super::x;\npub fn y() { crate::b::b() }",
    );
    assert_eq!(
        read(folder.path()).circles(),
        [
            "in ``: a::y uses `crate::b::b`, and `b` uses `a`",
            "in ``: b uses `crate::c::C`, and `c` uses `b`",
            "in ``: c uses `crate::a::f`, and `a` uses `c`",
            "in ``: c uses `crate::b::b`, and `b` uses `c`",
            "in `a`: a::x uses `super::y::y`, and `y` uses `x`",
            "in `a`: a::y uses `super::x`, and `x` uses `y`",
        ]
    );
}
