"""Bad input as a value: an error that names its reason, its place and the way out.

Everything that comes from outside (archives, images, poses, meshes, shards, checkpoints, parameters) is checked where it
enters, and what fails the check raises `BadInput`. A loop over objects catches exactly this class, counts it by `reason`
in the stats or result rows, and goes on with the next object; any other exception is a defect and stops the run.
Reasons are short snake_case nouns, stable across versions, because dashboards and tests group by them.
"""


class BadInput(ValueError):
    """Input that cannot be used.

    Args:
        reason: stable snake_case name that stats and result rows count by, for example `pose_not_rotation`.
        where: the file, archive member, object key or parameter at fault.
        detail: what was seen, in plain words.
        remedy: what the user can do about it, if anything.
    """

    def __init__(self, reason: str, where: object, detail: str, remedy: str = "") -> None:
        self.reason = reason
        self.where = str(where)
        self.detail = detail
        self.remedy = remedy
        super().__init__(f"{where}: {detail} [{reason}]" + (f"\n  -> {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type["BadInput"], tuple[str, str, str, str]]:
        """Survive the trip between processes (Dask workers pickle their exceptions)."""
        return type(self), (self.reason, self.where, self.detail, self.remedy)
