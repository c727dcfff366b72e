"""Known vulnerabilities of what constraints.txt pins: `make audit`.

Exit status 1 for one that is not in `ACCEPTED`. Where the service does not
answer, or knows none of the packages, that is said and nothing is audited:
status 0, because a build must not depend on it.
"""

import json
import subprocess
import sys

#: Identifiers of advisories, each explained in SECURITY.md.
ACCEPTED: tuple[str, ...] = ()
#: What pip-audit and requests say of a service that does not answer.
UNREACHABLE = ('connect', 'timed out', 'timeout', 'httperror')
COMMAND = (
    *(sys.executable, '-m', 'pip_audit', '--format=json'),
    *('--requirement=constraints.txt', '--no-deps', '--disable-pip'),
    *('--progress-spinner=off', '--timeout=15'),
    *(f'--ignore-vuln={name}' for name in ACCEPTED),
)


def main(options: list[str]) -> int:
    """Audit, with more options for pip-audit."""
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True
    )
    try:
        packages = json.loads(done.stdout)['dependencies']
    except ValueError:
        print(done.stderr[-1000:])
        if not any(word in done.stderr.lower() for word in UNREACHABLE):
            return 1
        print('NOT AUDITED: the service for vulnerabilities did not answer')
        return 0
    skipped = [found['name'] for found in packages if 'skip_reason' in found]
    if len(skipped) == len(packages):
        print(
            f'NOT AUDITED: the service knows none of the {len(packages)} '
            'packages, so it is not the real one'
        )
        return 0
    vulnerable = [found for found in packages if found.get('vulns')]
    for found in vulnerable:
        for advisory in found['vulns']:
            fixed = ', '.join(advisory['fix_versions']) or 'no version'
            print(
                f'{found["name"]} {found["version"]}: {advisory["id"]}, '
                f'mended in {fixed}'
            )
    print(
        f'{len(packages) - len(skipped)} packages audited, '
        f'{len(vulnerable)} vulnerable; unknown to the service: '
        + (', '.join(skipped) or 'none')
    )
    return 1 if vulnerable else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
