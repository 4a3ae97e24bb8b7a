//! Statements that change the catalog: their names for rules, what they touch, what they make.

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, ObjectType};

use super::body;
use super::names;
use super::statement::Draft;
use crate::policy::facts::{Name, StatementClass as Class};

impl Draft<'_> {
    /// Any statement that changes the catalog, and what is left.
    pub fn ddl_statement(&mut self, node: &Node, inside: &NodeEnum) {
        let kind = names::kind(Some(inside));
        if !kind.ends_with("Stmt") {
            self.unknown(node);
            return;
        }
        self.class = Class::Ddl;
        self.command = command(&kind, inside);
        self.ddl = true;
        if self.mentions.queries > 0 {
            self.found.problem(format!("a query inside {}", self.command.to_uppercase()));
        }
        if self.mentions.nodes.contains("exclusion constraint") {
            self.found.problem("an EXCLUDE constraint");
        }
        let created = self.created(inside);
        let mut skipped = false;
        for [_, schema, name] in self.mentions.relations.clone() {
            let itself =
                created.as_ref().is_some_and(|c| c.schemaname == schema && c.relname == name);
            if itself && !skipped {
                skipped = true;
                continue;
            }
            self.touches(&schema, &name);
        }
        if let Some(created) = created {
            self.creates_relation(&created);
        }
        self.named_objects(inside);
        if !may_run_masked(inside) {
            self.found.problem(format!(
                "{}, which may not run while columns are masked",
                self.command.to_uppercase()
            ));
        }
        body::look_into(self, inside);
    }

    /// The relation a statement makes.
    fn created(&self, inside: &NodeEnum) -> Option<protobuf::RangeVar> {
        match inside {
            NodeEnum::CreateStmt(s) => s.relation.clone(),
            NodeEnum::CreateForeignTableStmt(s) => s.base_stmt.as_ref()?.relation.clone(),
            NodeEnum::ViewStmt(s) => s.view.clone(),
            NodeEnum::CreateSeqStmt(s) => s.sequence.clone(),
            NodeEnum::CompositeTypeStmt(s) => s.typevar.clone(),
            _ => None,
        }
    }

    /// Objects named by lists of words, and new names.
    fn named_objects(&mut self, inside: &NodeEnum) {
        match inside {
            NodeEnum::DropStmt(s) => {
                for object in &s.objects {
                    self.dropped(s.remove_type, object);
                }
            }
            NodeEnum::RenameStmt(s) => {
                let relation = |t: i32| {
                    [
                        ObjectType::ObjectTable,
                        ObjectType::ObjectView,
                        ObjectType::ObjectMatview,
                        ObjectType::ObjectIndex,
                        ObjectType::ObjectSequence,
                        ObjectType::ObjectForeignTable,
                        ObjectType::ObjectType,
                    ]
                    .iter()
                    .any(|o| *o as i32 == t)
                };
                if relation(s.rename_type) {
                    let schema =
                        s.relation.as_ref().map(|r| self.resolve(&r.schemaname, &r.relname));
                    let schema = schema.map(|r| r.name.schema).unwrap_or_default();
                    self.gets_name(schema, &s.newname);
                }
            }
            NodeEnum::AlterObjectSchemaStmt(s) => {
                if let Some(relation) = &s.relation {
                    self.gets_name(s.newschema.clone(), &relation.relname);
                }
            }
            NodeEnum::IndexStmt(s) if !s.idxname.is_empty() => {
                let schema = s.relation.as_ref().map(|r| self.resolve(&r.schemaname, &r.relname));
                let schema = schema.map(|r| r.name.schema).unwrap_or_default();
                self.gets_name(schema, &s.idxname);
            }
            NodeEnum::AlterRoleSetStmt(s) => {
                if let Some(set) = &s.setstmt {
                    self.settings = super::kind::set(set).1;
                }
            }
            NodeEnum::AlterDatabaseSetStmt(s) => {
                if let Some(set) = &s.setstmt {
                    self.settings = super::kind::set(set).1;
                }
            }
            NodeEnum::CommentStmt(s) => {
                if let Some(Node { node: Some(NodeEnum::List(list)) }) = s.object.as_deref() {
                    let mut words = names::strings(&list.items);
                    if s.objtype == ObjectType::ObjectColumn as i32 {
                        words.pop();
                    }
                    self.mentions_list(&words);
                }
            }
            _ => {}
        }
    }

    fn gets_name(&mut self, schema: String, name: &str) {
        let name = Name { schema, name: name.to_owned() };
        self.creates.push(name.clone());
        self.written.push(name);
    }

    fn dropped(&mut self, kind: i32, object: &Node) {
        let Some(NodeEnum::List(list)) = &object.node else { return };
        let mut words = names::strings(&list.items);
        match ObjectType::try_from(kind) {
            Ok(
                ObjectType::ObjectTable
                | ObjectType::ObjectView
                | ObjectType::ObjectMatview
                | ObjectType::ObjectForeignTable
                | ObjectType::ObjectSequence,
            ) => self.touch_list(&words),
            Ok(ObjectType::ObjectIndex) => self.mentions_list(&words),
            // The last word is the trigger, rule or policy; the others its table.
            Ok(ObjectType::ObjectTrigger | ObjectType::ObjectRule | ObjectType::ObjectPolicy) => {
                words.pop();
                self.touch_list(&words);
            }
            _ => {}
        }
    }

    fn touch_list(&mut self, words: &[String]) {
        match words {
            [name] => self.touches("", name),
            [.., schema, name] => self.touches(schema, name),
            [] => {}
        }
    }

    fn mentions_list(&mut self, words: &[String]) {
        let relation = match words {
            [name] => self.resolve("", name),
            [.., schema, name] => self.resolve(schema, name),
            [] => return,
        };
        self.found.relations.push(relation);
    }
}

/// Changes of the catalog that cannot move or uncover a value, as long as what they touch has
/// no masked column.
fn may_run_masked(inside: &NodeEnum) -> bool {
    match inside {
        NodeEnum::CreateStmt(_)
        | NodeEnum::IndexStmt(_)
        | NodeEnum::AlterTableStmt(_)
        | NodeEnum::CreateSeqStmt(_)
        | NodeEnum::AlterSeqStmt(_)
        | NodeEnum::CreateEnumStmt(_)
        | NodeEnum::AlterEnumStmt(_)
        | NodeEnum::CreateStatsStmt(_)
        | NodeEnum::CommentStmt(_) => true,
        NodeEnum::CreateSchemaStmt(s) => s.schema_elts.is_empty(),
        NodeEnum::RenameStmt(s) => s.relation.is_some(),
        NodeEnum::AlterObjectSchemaStmt(s) => s.relation.is_some(),
        NodeEnum::GrantStmt(s) => {
            s.objtype == ObjectType::ObjectTable as i32
                && s.objects.iter().all(|o| matches!(o.node, Some(NodeEnum::RangeVar(_))))
        }
        NodeEnum::DropStmt(s) => matches!(
            ObjectType::try_from(s.remove_type),
            Ok(ObjectType::ObjectTable
                | ObjectType::ObjectIndex
                | ObjectType::ObjectSequence
                | ObjectType::ObjectView
                | ObjectType::ObjectMatview)
        ),
        _ => false,
    }
}

/// The command as rules name it.
fn command(kind: &str, inside: &NodeEnum) -> String {
    let object = |verb: &str, t: i32| {
        let name = ObjectType::try_from(t).map_or("", |o| o.as_str_name());
        let name = name.trim_start_matches("OBJECT_").to_ascii_lowercase();
        let name = match name.as_str() {
            "matview" => "materialized view".to_owned(),
            "column" | "tabconstraint" => "table".to_owned(),
            "attribute" => "type".to_owned(),
            "domconstraint" => "domain".to_owned(),
            "fdw" => "foreign data wrapper".to_owned(),
            "foreign_server" => "server".to_owned(),
            "statistic_ext" => "statistics".to_owned(),
            "opclass" => "operator class".to_owned(),
            "opfamily" => "operator family".to_owned(),
            "tsconfiguration" => "text search configuration".to_owned(),
            "tsdictionary" => "text search dictionary".to_owned(),
            "tsparser" => "text search parser".to_owned(),
            "tstemplate" => "text search template".to_owned(),
            other => other.replace('_', " "),
        };
        format!("{verb} {name}")
    };
    match inside {
        NodeEnum::DropStmt(s) => object("drop", s.remove_type),
        NodeEnum::RenameStmt(s) => object("alter", s.rename_type),
        NodeEnum::AlterObjectSchemaStmt(s) => object("alter", s.object_type),
        NodeEnum::AlterOwnerStmt(s) => object("alter", s.object_type),
        NodeEnum::AlterTableStmt(s) => object("alter", s.objtype),
        NodeEnum::DefineStmt(s) => object("create", s.kind),
        NodeEnum::CreateFunctionStmt(s) if s.is_procedure => "create procedure".to_owned(),
        NodeEnum::AlterFunctionStmt(s) => object("alter", s.objtype),
        NodeEnum::GrantStmt(s) => if s.is_grant { "grant" } else { "revoke" }.to_owned(),
        NodeEnum::GrantRoleStmt(s) => {
            if s.is_grant { "grant role" } else { "revoke role" }.to_owned()
        }
        _ => plain_command(kind),
    }
}

fn plain_command(kind: &str) -> String {
    let stem = kind.trim_end_matches("Stmt");
    let special = match stem {
        "Create" => "create table",
        "View" => "create view",
        "Index" => "create index",
        "Rule" => "create rule",
        "CompositeType" => "create type",
        "CreateEnum" | "CreateRange" => "create type",
        "AlterEnum" | "AlterType" => "alter type",
        "CreateTrig" => "create trigger",
        "CreateEventTrig" => "create event trigger",
        "AlterEventTrig" => "alter event trigger",
        "CreateSeq" => "create sequence",
        "AlterSeq" => "alter sequence",
        "CreateStats" => "create statistics",
        "AlterStats" => "alter statistics",
        "CreatePLang" | "CreatePlang" => "create language",
        "CreateAm" => "create access method",
        "CreateFdw" => "create foreign data wrapper",
        "AlterFdw" => "alter foreign data wrapper",
        "CreateForeignServer" => "create server",
        "AlterForeignServer" => "alter server",
        "CreateOpClass" => "create operator class",
        "CreateOpFamily" => "create operator family",
        "AlterOpFamily" => "alter operator family",
        "Createdb" => "create database",
        "Dropdb" => "drop database",
        "AlterDatabaseSet" | "AlterDatabaseRefreshColl" => "alter database",
        "AlterRoleSet" => "alter role",
        "CreateTableSpace" => "create tablespace",
        "DropTableSpace" => "drop tablespace",
        "AlterTableSpaceOptions" => "alter tablespace",
        "AlterTableMoveAll" => "alter table",
        "AlterExtensionContents" => "alter extension",
        "SecLabel" => "security label",
        "RefreshMatView" => "refresh materialized view",
        "AlterTsdictionary" => "alter text search dictionary",
        "AlterTsconfiguration" => "alter text search configuration",
        "ReplicaIdentity" => "alter table",
        _ => "",
    };
    if !special.is_empty() {
        return special.to_owned();
    }
    let mut words = String::new();
    for c in stem.chars() {
        if c.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}
