"""The three-way merge: a table of cases, and properties over random trees against a per-path model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootwright.deploy.merge import Action, Kind, MergeNode, MergePlan, plan_merge

Tree = dict[bytes, MergeNode]


def directory(mode: int = 0o755) -> MergeNode:
    return MergeNode(Kind.DIRECTORY, mode, 0, 0, (), b"")


def file(content: bytes, mode: int = 0o644) -> MergeNode:
    return MergeNode(Kind.FILE, mode, 0, 0, (), content)


def link(target: bytes) -> MergeNode:
    return MergeNode(Kind.SYMLINK, 0, 0, 0, (), target)


def tree(**nodes: MergeNode) -> Tree:
    """`a__b=` stands for the path a/b; missing parents become directories."""
    result: Tree = {}
    for name, node in nodes.items():
        path = name.replace("__", "/").encode()
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            result.setdefault(b"/".join(parts[:depth]), directory())
        result[path] = node
    return result


def apply(plan: MergePlan, current: Tree, new: Tree) -> Tree:
    """What executing the plan gives, on trees instead of files."""
    result = dict(new)

    def remove(path: bytes) -> None:
        for known in [known for known in result if known == path or known.startswith(path + b"/")]:
            del result[known]

    for operation in plan.operations:
        path = operation.path
        if operation.action is Action.REMOVE:
            remove(path)
        elif operation.action is Action.WRITE:
            remove(path)
            result[path] = current[path]
        else:
            result[path] = current[path]
        parent = path.rpartition(b"/")[0]
        if operation.action is not Action.REMOVE:
            assert not parent or result[parent].kind is Kind.DIRECTORY, "a parent is made before its children"
    return result


@pytest.mark.parametrize(
    ("pristine", "current", "new", "merged"),
    [
        pytest.param(tree(a=file(b"1")), tree(a=file(b"1")), tree(a=file(b"2")), tree(a=file(b"2")), id="follows"),
        pytest.param(tree(a=file(b"1")), tree(a=file(b"x")), tree(a=file(b"2")), tree(a=file(b"x")), id="local-wins"),
        pytest.param(tree(), tree(a=file(b"x")), tree(), tree(a=file(b"x")), id="added"),
        pytest.param(tree(), tree(a=file(b"x")), tree(a=file(b"2")), tree(a=file(b"x")), id="added-on-both-sides"),
        pytest.param(tree(a=file(b"1")), tree(), tree(a=file(b"2")), tree(), id="removal-persists"),
        pytest.param(tree(a=file(b"1")), tree(a=file(b"1")), tree(), tree(), id="dropped-by-image"),
        pytest.param(tree(a=file(b"1")), tree(a=file(b"x")), tree(), tree(a=file(b"x")), id="dropped-but-changed"),
        pytest.param(
            tree(a=file(b"1")), tree(a=file(b"1", 0o600)), tree(a=file(b"2")), tree(a=file(b"1", 0o600)), id="mode"
        ),
        pytest.param(tree(a=file(b"1")), tree(a=link(b"b")), tree(a=file(b"2")), tree(a=link(b"b")), id="file-to-link"),
        pytest.param(tree(a=link(b"x")), tree(a=link(b"x")), tree(a=link(b"y")), tree(a=link(b"y")), id="link-follows"),
        pytest.param(
            tree(d__a=file(b"1")), tree(d__a=file(b"x")), tree(), tree(d__a=file(b"x")), id="directory-comes-back"
        ),
        pytest.param(tree(d__a=file(b"1")), tree(d__a=file(b"1")), tree(), tree(), id="unchanged-directory-goes"),
        pytest.param(tree(d__a=file(b"1")), tree(), tree(d__a=file(b"1"), d__b=file(b"2")), tree(), id="removed-tree"),
        pytest.param(
            tree(d__a=file(b"1")),
            tree(d__a=file(b"1"), d=directory(0o700)),
            tree(d__a=file(b"2"), d__n=file(b"3")),
            tree(d__a=file(b"2"), d__n=file(b"3"), d=directory(0o700)),
            id="directory-mode",
        ),
        pytest.param(
            tree(d__a=file(b"1"), d__b=file(b"1")),
            tree(d__b=file(b"1")),
            tree(d__a=file(b"2"), d__b=file(b"2")),
            tree(d__b=file(b"2")),
            id="removed-inside",
        ),
        pytest.param(
            tree(d__a=file(b"1")), tree(d__a=file(b"1")), tree(d=file(b"now a file")), tree(d=file(b"now a file")),
            id="image-changes-type",
        ),
        pytest.param(tree(d__a=file(b"1")), tree(d=link(b"/x")), tree(), tree(d=link(b"/x")), id="directory-to-link"),
        pytest.param(tree(), tree(e=directory(0o700)), tree(), tree(e=directory(0o700)), id="empty-directory"),
    ],
)  # fmt: skip
def test_merge(pristine: Tree, current: Tree, new: Tree, merged: Tree) -> None:
    plan = plan_merge(pristine, current, new)
    assert plan.conflicts == ()
    assert apply(plan, current, new) == merged


@pytest.mark.parametrize(
    ("pristine", "current", "new", "paths"),
    [
        pytest.param(tree(), tree(a__b=file(b"x")), tree(a=file(b"2")), [b"a"], id="new-directory-here"),
        pytest.param(tree(), tree(a=file(b"x")), tree(a__b=file(b"2")), [b"a"], id="new-file-here"),
        pytest.param(tree(a__b=file(b"1")), tree(a__b=file(b"x")), tree(a=file(b"2")), [b"a"], id="changed-below"),
        pytest.param(tree(a__b=file(b"1")), tree(a__b=file(b"x")), tree(a=link(b"z")), [b"a"], id="link-in-new"),
        pytest.param(tree(a__b=file(b"1")), tree(a=link(b"z")), tree(a__b=file(b"1")), [b"a"], id="link-here"),
    ],
)
def test_conflicts(pristine: Tree, current: Tree, new: Tree, paths: list[bytes]) -> None:
    plan = plan_merge(pristine, current, new)
    assert [conflict.path for conflict in plan.conflicts] == paths
    assert "'/etc/a' is a" in str(plan.conflicts[0])


# ---- properties ------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c"])
LEAVES = st.one_of(
    st.builds(file, st.sampled_from([b"1", b"2", b"3"]), st.sampled_from([0o644, 0o600])),
    st.builds(link, st.sampled_from([b"x", b"y"])),
)
NESTED = st.recursive(
    LEAVES,
    lambda children: st.tuples(st.sampled_from([0o755, 0o700]), st.dictionaries(NAMES, children, max_size=3)),
    max_leaves=8,
)


def flatten(nested: object, prefix: bytes = b"") -> Tree:
    result: Tree = {}
    assert isinstance(nested, dict)
    for name, value in nested.items():
        if isinstance(value, MergeNode):
            result[prefix + name] = value
        else:
            mode, children = value
            result[prefix + name] = directory(mode)
            result.update(flatten(children, prefix + name + b"/"))
    return result


TREES = st.dictionaries(NAMES, NESTED, max_size=3).map(flatten)


def model(pristine: Tree, current: Tree, new: Tree) -> Tree | None:
    """The rules path by path; None where they contradict each other."""
    changed = {path for path in current if current[path] != pristine.get(path)}
    removed = {path for path in pristine if path not in current}

    def above(path: bytes) -> list[bytes]:
        parts = path.split(b"/")
        return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]

    kept = changed | {parent for path in changed for parent in above(path) if parent not in new}
    result: Tree = {}
    for path in new.keys() | kept:
        if path in kept:
            result[path] = current[path]
        elif not any(place in removed for place in [*above(path), path]):
            result[path] = new[path]
    for path in kept:
        for place in [path, *above(path)]:
            if place in new and (new[place].kind is Kind.DIRECTORY) != (current[place].kind is Kind.DIRECTORY):
                return None
    # What the new image has below something that is a file or link now is gone.
    leaves = {path for path in kept if result[path].kind is not Kind.DIRECTORY}
    return {path: node for path, node in result.items() if not set(above(path)) & leaves}


@settings(max_examples=200)
@given(TREES, TREES, TREES)
def test_plan_agrees_with_the_model(pristine: Tree, current: Tree, new: Tree) -> None:
    plan = plan_merge(pristine, current, new)
    expected = model(pristine, current, new)
    if plan.conflicts or expected is None:
        assert plan.conflicts
        assert expected is None
        return
    merged = apply(plan, current, new)
    assert merged == expected
    for path in merged:
        parent = path.rpartition(b"/")[0]
        assert not parent or merged[parent].kind is Kind.DIRECTORY


@settings(max_examples=60)
@given(TREES, TREES)
def test_without_local_changes_the_image_is_followed(pristine: Tree, new: Tree) -> None:
    plan = plan_merge(pristine, pristine, new)
    assert plan == MergePlan((), ())


@settings(max_examples=60)
@given(TREES, TREES)
def test_without_an_image_change_nothing_local_changes(pristine: Tree, current: Tree) -> None:
    plan = plan_merge(pristine, current, pristine)
    assert plan.conflicts or apply(plan, current, pristine) == current


@settings(max_examples=60)
@given(TREES, TREES, TREES)
def test_merging_the_result_again_changes_nothing(pristine: Tree, current: Tree, new: Tree) -> None:
    plan = plan_merge(pristine, current, new)
    if not plan.conflicts:
        merged = apply(plan, current, new)
        assert apply(plan_merge(new, merged, new), merged, new) == merged
