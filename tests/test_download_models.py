"""download_models.py against a small HTTP server of its own on 127.0.0.1, with small files in place of the official."""
import contextlib
import errno
import gzip
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from conftest import GOLDEN

import download_models
from download_models import Model
from utils import UserError

ROOT = Path(download_models.__file__).parent
CHUNK = 4096
BODIES = {name: np.random.default_rng(seed).bytes(10 * CHUNK + seed)
          for seed, name in enumerate(('alpha', 'beta', 'gamma'), start=1)}
QUOTA_PAGE = '<html><title>Google Drive - Quota exceeded</title><p>Too many users have viewed or downloaded this file.'


class Site:
    """A server whose `answers[key](request, fields)` replies; key: a Drive id, or the path asked for."""

    def __init__(self):
        self.answers = {}
        self.log = []  # (key, the Range header or None) of each request, in order
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                fields = dict(parse_qsl(url.query))
                if self.command == 'POST':
                    fields |= parse_qsl(self.rfile.read(int(self.headers.get('Content-Length', 0))).decode())
                key = fields['id'] if url.path == '/uc' else url.path
                site.log.append((key, self.headers.get('Range')))
                site.answers.get(key, not_found)(self, fields)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def send(request, body, status=200, kind='application/octet-stream', cut=None, length=None, **headers):
    """Reply with `body`; `cut`: send that many bytes only and hang up; `length`: what to announce ('' : nothing)."""
    request.send_response(status)
    length = len(body) if length is None else length
    headers |= {'Content-Type': kind} | ({} if length == '' else {'Content-Length': length})
    for name, value in headers.items():
        request.send_header(name.replace('_', '-'), str(value))
    request.end_headers()
    request.wfile.write(body[:cut])


def not_found(request, fields):
    send(request, b'<html>not found</html>', status=404, kind='text/html')


def page(text, **how):
    return lambda request, fields: send(request, text.encode(), kind='text/html; charset=utf-8', **how)


def file(body, ranges=True, cuts=(), **how):
    """An answer with the file `body`; the first answers stop after `cuts` bytes each."""
    cuts = list(cuts)

    def answer(request, fields):
        cut = cuts.pop(0) if cuts else None
        match = re.fullmatch(r'bytes=(\d+)-', request.headers.get('Range', '')) if ranges else None
        if not match:
            send(request, body, cut=cut, **how)
        elif int(match[1]) >= len(body):
            send(request, b'', status=416, Content_Range=f'bytes */{len(body)}')
        else:
            first = int(match[1])
            send(request, body[first:], status=206, cut=cut,
                 Content_Range=f'bytes {first}-{len(body) - 1}/{len(body)}', **how)
    return answer


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The server, serving the three files as Google Drive would small ones; the working directory is empty."""
    site = Site()
    site.answers = {f'id-{name}': file(body) for name, body in BODIES.items()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(download_models, 'DRIVE_URL', f'{site.url}/uc')
    monkeypatch.setattr(download_models, 'RETRY_PAUSES', (0, 0, 0))
    monkeypatch.setattr(download_models, 'CHUNK', CHUNK)
    monkeypatch.setattr(download_models, 'MODELS', {
        name: Model(f'id-{name}', len(body), hashlib.md5(body).hexdigest(), f'models/{name}.pt')
        for name, body in BODIES.items()})
    yield site
    site.close()


def run(*flags):
    download_models.main(download_models.read_flags(list(flags)))


def only_alpha(*flags):
    run('--only', 'alpha', *flags)


def alpha_fails(pattern, *flags):
    """--only alpha ends with one sentence that matches `pattern`, and no model is written."""
    with pytest.raises(UserError, match=pattern) as caught:
        only_alpha(*flags)
    assert '\n' not in str(caught.value)
    assert not Path('models/alpha.pt').exists()
    return str(caught.value)


def leave_part(content):
    part = Path('models/alpha.pt.part')
    part.parent.mkdir()
    part.write_bytes(content)
    return part


def written():
    return {path.name: path.read_bytes() for path in Path('models').iterdir()}


def test_the_table_is_that_of_the_official_files():
    expected = json.loads((GOLDEN / 'original.json').read_text())['models']
    assert len(expected) == 5
    assert {name: Model(**facts) for name, facts in expected.items()} == download_models.MODELS


def test_downloads_all_and_leaves_nothing_else(site, capsys):
    run()
    assert written() == {f'{name}.pt': body for name, body in BODIES.items()}
    assert site.log == [(f'id-{name}', None) for name in BODIES]
    assert capsys.readouterr().out.count('size and MD5 are right') == 3


def test_out_dir_and_several_names(site, tmp_path, capsys):
    run('--out_dir', str(tmp_path / 'a' / 'b'), '--only', 'gamma,alpha', '--only', 'alpha')
    assert {path.name for path in (tmp_path / 'a/b/models').iterdir()} == {'alpha.pt', 'gamma.pt'}
    assert [key for key, _ in site.log] == ['id-gamma', 'id-alpha']
    assert capsys.readouterr().out.count('alpha: ') == 1


def test_follows_redirects_with_the_range(site):
    site.answers['id-alpha'] = lambda request, fields: send(request, b'', status=303, Location='/elsewhere?x=1')
    site.answers['/elsewhere'] = file(BODIES['alpha'])
    leave_part(BODIES['alpha'][:5000])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log == [('id-alpha', 'bytes=5000-'), ('/elsewhere', 'bytes=5000-')]


def test_already_there(site, capsys):
    only_alpha()
    asked = len(site.log)
    only_alpha()
    assert len(site.log) == asked
    assert 'already at models/alpha.pt' in capsys.readouterr().out


@pytest.mark.parametrize('content', [b'my own training', BODIES['alpha'][:-1] + b'!'], ids=['size', 'md5'])
def test_another_file_in_its_place_is_kept(site, content):
    leave_part(b'').with_name('alpha.pt').write_bytes(content)
    with pytest.raises(UserError, match='models/alpha.pt is not the official alpha .* --out_dir'):
        only_alpha()
    assert Path('models/alpha.pt').read_bytes() == content
    assert site.log == []


def test_goes_on_after_broken_transfers(site):
    site.answers['id-alpha'] = file(BODIES['alpha'], cuts=[3 * CHUNK, 4 * CHUNK])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log == [('id-alpha', None), ('id-alpha', f'bytes={3 * CHUNK}-'), ('id-alpha', f'bytes={7 * CHUNK}-')]


def test_keeps_the_part_when_transfers_keep_breaking_and_the_next_run_goes_on(site):
    site.answers['id-alpha'] = file(BODIES['alpha'], cuts=[2 * CHUNK, CHUNK, CHUNK, CHUNK])
    size = len(BODIES['alpha'])
    alpha_fails(f'^alpha: the transfer from .* broke off .* at {5 * CHUNK} of {size} bytes.*in models/alpha.pt.part')
    assert written() == {'alpha.pt.part': BODIES['alpha'][:5 * CHUNK]}
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log[-1] == ('id-alpha', f'bytes={5 * CHUNK}-')


def test_broken_transfer_of_unannounced_length(site):
    site.answers['id-alpha'] = file(BODIES['alpha'], cuts=[2 * CHUNK], length='')
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log[1:] == [('id-alpha', f'bytes={2 * CHUNK}-')]


def test_server_without_ranges_starts_over(site):
    leave_part(b'x' * 5000)  # would spoil the file if it were built upon
    site.answers['id-alpha'] = file(BODIES['alpha'], ranges=False, cuts=[3 * CHUNK])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert [asked for _, asked in site.log] == ['bytes=5000-', f'bytes={3 * CHUNK}-']


@pytest.mark.parametrize('headers', [{}, {'Content_Range': 'bytes 0-9/10'}, {'Content_Range': 'nonsense'}])
def test_a_part_that_is_not_the_one_asked_for_is_not_appended(site, headers):
    def answer(request, fields):
        if 'Range' in request.headers:
            send(request, b'0123456789', status=206, **headers)
        else:
            send(request, BODIES['alpha'])
    site.answers['id-alpha'] = answer
    leave_part(BODIES['alpha'][:5000])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}


def test_complete_part_is_checked_and_needs_no_server(site):
    leave_part(BODIES['alpha'])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log == []


@pytest.mark.parametrize('content', [bytes(len(BODIES['alpha'])), BODIES['alpha'] + b'more'], ids=['md5', 'long'])
def test_complete_but_wrong_part_is_fetched_anew(site, content):
    leave_part(content)
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log == [('id-alpha', None)]


def test_wrong_checksum(site):
    wrong = bytes(len(BODIES['alpha']))
    site.answers['id-alpha'] = file(wrong)
    message = alpha_fails('has the MD5 .* removed')
    assert hashlib.md5(wrong).hexdigest() in message and hashlib.md5(BODIES['alpha']).hexdigest() in message
    assert written() == {}


def test_wrong_checksum_after_resuming(site):
    leave_part(b'x' * 5000)
    alpha_fails('has the MD5 .* removed')
    assert written() == {}


def test_wrong_size_is_refused_before_it_costs_the_part(site):
    part = leave_part(BODIES['alpha'][:5000])
    site.answers['id-alpha'] = file(BODIES['alpha'] + b'more')
    size = len(BODIES['alpha'])
    alpha_fails(f'has {size + 4} bytes and not {size}, so it is another file')
    assert part.read_bytes() == BODIES['alpha'][:5000]


def test_file_shorter_than_the_part(site):
    leave_part(BODIES['alpha'][:5000])
    site.answers['id-alpha'] = file(BODIES['beta'][:100])  # answers HTTP 416 to the range
    alpha_fails('has 100 bytes and not')


def test_too_many_bytes_without_an_announcement(site):
    site.answers['id-alpha'] = file(BODIES['alpha'] + b'more', length='')
    alpha_fails(f'has more than {len(BODIES["alpha"])} bytes')
    assert written() == {}


@pytest.mark.parametrize('how', [{}, {'kind': 'application/octet-stream', 'length': ''}], ids=['labeled', 'disguised'])
def test_page_instead_of_the_file(site, how):
    text = '\n<!doctype html><form action="/login"><input type="hidden" name="csrf" value="1"></form>'
    site.answers['id-alpha'] = lambda request, fields: send(request, text.encode(), **({'kind': 'text/html'} | how))
    message = alpha_fails('web page instead of the file')
    assert 'https://drive.google.com/file/d/id-alpha/view' in message and 'save it as models/alpha.pt' in message
    assert written() == {}


def endless(status, kind='text/html', **headers):
    """An answer whose body does not end; it counts what was taken."""
    def answer(request, fields):
        request.send_response(status)
        for name, value in {'Content-Type': kind, **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        with contextlib.suppress(OSError):
            while answer.sent < 2**28:
                request.wfile.write(b'<p>more</p>' * 4096)
                answer.sent += 11 * 4096
    answer.sent = 0
    return answer


@pytest.mark.parametrize('status', [200, 206, 403, 404, 500])
def test_page_without_an_end(site, status):
    """It costs a few megabytes (which the sockets hold), not all of the memory."""
    site.answers['id-alpha'] = endless(status)
    message = alpha_fails('web page without an end')
    assert '.part' not in message and site.answers['id-alpha'].sent < 2**26
    assert written() == {}


def test_redirects(site):
    """Their bodies are not read, and they do not go on for ever."""
    site.answers |= {'id-alpha': endless(302, Location='/there'), '/there': file(BODIES['alpha'])}
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']} and site.answers['id-alpha'].sent < 2**26
    Path('models/alpha.pt').unlink()
    site.answers['/there'] = lambda request, fields: send(request, b'', status=307, Location='/there')
    assert '.part' not in alpha_fails('redirects without an end')


@pytest.mark.parametrize('length', ['²', '9' * 5000, '-3', 'many'])
def test_malformed_length(site, length):
    """It counts as none; the bytes are what is checked."""
    def answer(request, fields):
        request.send_response(200)
        request.wfile.write(b''.join(request._headers_buffer) + b'Content-Length: ' + length.encode() + b'\r\n\r\n')
        request._headers_buffer.clear()
        request.wfile.write(BODIES['alpha'])
        request.close_connection = True
    site.answers['id-alpha'] = answer
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    length = '1, 2'
    Path('models/alpha.pt').unlink()
    alpha_fails('its answer has a malformed header')


FORM = """<html><head><title>Google Drive - Virus scan warning</title></head><body><form action="/search">
<input name="q"><input type=hidden name="hl" value="en"></form><p>Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="{action}" method="{method}"><input type="submit" value="Download"/>{fields}</form>
"""


@pytest.mark.parametrize('held', [0, 5000])
@pytest.mark.parametrize('method, action, inputs', [
    ('get', '/download', ('id', 'export', 'confirm', 'uuid')),
    ('post', 'download?id=id-alpha&amp;export=download&amp;confirm=t&amp;uuid=1-2', ()),
], ids=['get', 'post'])
def test_confirmation_form(site, method, action, inputs, held):
    values = {'id': 'id-alpha', 'export': 'download', 'confirm': 't', 'uuid': '1-2'}
    fields = ''.join(f'<input type="hidden" name="{name}" value="{values[name]}">' for name in inputs)
    form = FORM.format(action=action, method=method, fields=fields).encode()
    seen = []

    def download(request, fields):
        seen.append((request.command, fields))
        file(BODIES['alpha'])(request, fields)
    # A server may apply the Range to its page, too, or refuse it for so short a page.
    site.answers['id-alpha'] = file(form, kind='text/html; charset=utf-8')
    site.answers['/download'] = download
    if held:
        leave_part(BODIES['alpha'][:held])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert seen == [(method.upper(), values)]
    assert site.log[-1] == ('/download', f'bytes={held}-' if held else None)


def test_confirmation_form_when_the_range_cuts_the_page(site):
    confirm = '<input type="hidden" name="confirm" value="t">'
    form = FORM.format(action='/download', method='get', fields=confirm).encode()
    site.answers['id-alpha'] = file(form, kind='text/html')
    site.answers['/download'] = file(BODIES['alpha'])
    leave_part(BODIES['alpha'][:len(form) - 10])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}


def test_confirmation_cookie(site):
    def answer(request, fields):
        if fields.get('confirm') == 'AbC' and 'download_warning_13_x=AbC' in request.headers.get('Cookie', ''):
            file(BODIES['alpha'])(request, fields)
        else:
            page('<html>Download anyway?', Set_Cookie='download_warning_13_x=AbC; Path=/')(request, fields)
    site.answers['id-alpha'] = answer
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert len(site.log) == 2


def test_confirmation_that_never_ends(site):
    site.answers['id-alpha'] = page(FORM.format(action='/uc', method='get', fields='<input type="hidden" name="id" '
                                                'value="id-alpha"><input type="hidden" name="confirm" value="t">'))
    alpha_fails('web page instead of the file')
    assert len(site.log) < 10


@pytest.mark.parametrize('address', ['http://[/download', 'http://a..b/download'])
def test_confirmation_form_with_a_malformed_address(site, address):
    confirm = '<input type="hidden" name="confirm" value="t">'
    site.answers['id-alpha'] = page(FORM.format(action=address, method='get', fields=confirm))
    alpha_fails('leads to a malformed address')


@pytest.mark.parametrize('status', [200, 403, 429])
def test_quota_page(site, status):
    site.answers['id-alpha'] = page(QUOTA_PAGE, status=status)
    message = alpha_fails('too many people downloaded it')
    assert len(site.log) == 1
    for remedy in ('try again later', '--mirror URL', 'drive.google.com/file/d/id-alpha/view', 'as models/alpha.pt'):
        assert remedy in message


def test_missing_file_is_asked_for_once(site):
    del site.answers['id-alpha']
    alpha_fails('answered HTTP 404')
    assert len(site.log) == 1


def test_server_out_of_order_for_a_moment(site):
    answers = [page('busy', status=503), file(BODIES['alpha'])]
    site.answers['id-alpha'] = lambda request, fields: answers.pop(0)(request, fields)
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}


def test_server_out_of_order(site):
    site.answers['id-alpha'] = page('busy', status=503)
    message = alpha_fails('did not deliver the file .HTTP 503.')  # nothing came, so nothing is said to be kept
    assert len(site.log) == 4 and '.part' not in message


def closed_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_no_network(site, monkeypatch):
    part = leave_part(BODIES['alpha'][:5000])
    url = f'http://127.0.0.1:{closed_port()}/uc'
    monkeypatch.setattr(download_models, 'DRIVE_URL', url)
    alpha_fails(f'^alpha: cannot reach {re.escape(url)}.* is there a network.*--mirror URL.*save it as models/alpha.pt')
    assert part.read_bytes() == BODIES['alpha'][:5000]


def test_server_that_does_not_answer(site, monkeypatch):
    released = threading.Event()
    site.answers['id-alpha'] = lambda request, fields: released.wait(60)
    monkeypatch.setattr(download_models, 'TIMEOUT', (5, 0.2))
    alpha_fails('cannot reach .*no answer in time')
    released.set()


def test_mirror(site):
    site.answers = {f'/copies/of/{name}.pt': file(body) for name, body in BODIES.items()}
    run('--mirror', f'{site.url}/copies/of/')
    assert written() == {f'{name}.pt': body for name, body in BODIES.items()}


def test_mirror_that_compresses_where_it_may(site):
    def answer(request, fields):
        if 'gzip' in request.headers.get('Accept-Encoding', ''):
            send(request, gzip.compress(BODIES['alpha']), Content_Encoding='gzip')
        else:
            send(request, BODIES['alpha'])
    site.answers['/alpha.pt'] = answer
    only_alpha('--mirror', site.url)
    assert written() == {'alpha.pt': BODIES['alpha']}


def test_mirror_without_the_file(site):
    site.answers = {}
    message = alpha_fails(f'{site.url}/alpha.pt answered HTTP 404', '--mirror', site.url)
    assert 'check --mirror' in message and 'drive.google' not in message


def test_one_failure_does_not_stop_the_others(site, capsys):
    site.answers['id-alpha'] = page(QUOTA_PAGE)
    del site.answers['id-beta']
    with pytest.raises(UserError, match='^beta: .*') as caught:
        run()
    first = capsys.readouterr().err.splitlines()[-1]  # a sentence a line
    assert first.startswith('alpha: ') and first.isprintable() and str(caught.value).isprintable()
    assert written() == {'gamma.pt': BODIES['gamma']}


@pytest.mark.parametrize('flags, words', [
    (['--only', 'delta'], '--only delta: .*alpha, beta, gamma'),
    (['--only', 'alpha,'], '--only : '),
    (['--only'], '--only: expected one argument'),
    (['--onl', 'alpha'], '--onl'),
    (['--mirror', 'example.org/models'], '--mirror: example.org/models is not the address'),
    (['--mirror', 'ftp://example.org'], '--mirror'),
    (['--mirror', 'https://a..b/models'], '--mirror'),
    (['--mirror', 'https://[::1/models'], '--mirror'),
    (['--mirror', 'https://example.org:port/models'], '--mirror'),
    (['--mirror', 'https://example.org/models?key=1'], '--mirror'),
], ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_bad_flags(site, flags, words):
    with pytest.raises(UserError, match=words):
        run(*flags)
    assert site.log == [] and not Path('models').exists()


def test_file_where_a_folder_is_needed(site):
    Path('models').write_text('mine')
    with pytest.raises(UserError, match='^--out_dir models: cannot write there'):
        only_alpha()
    assert Path('models').read_text() == 'mine'


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs a folder in which nobody can make another')
def test_folder_that_cannot_be_made(site, tmp_path):
    result = subprocess.run([sys.executable, ROOT / 'download_models.py', '--only', 'sphere_init', '--out_dir',
                             '/proc/x'], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ''
    assert re.fullmatch(r'download_models.py: error: --out_dir /proc/x/\S+: cannot write there [^\n]*\n', result.stderr)


@pytest.mark.parametrize('first_fails', [False, True])
def test_two_at_once(site, capfd, first_fails):
    """The second waits for the first: it finds the file, or goes on from what the first left."""
    halfway, go_on = threading.Event(), threading.Event()

    def slow(request, fields):
        send(request, BODIES['alpha'], cut=5 * CHUNK)
        request.wfile.flush()
        halfway.set()
        assert go_on.wait(60)
        if first_fails:
            site.answers['id-alpha'] = missing_once
        else:
            request.wfile.write(BODIES['alpha'][5 * CHUNK:])

    def missing_once(request, fields):
        site.answers['id-alpha'] = file(BODIES['alpha'])
        not_found(request, fields)

    def first():
        with contextlib.suppress(UserError):
            only_alpha()

    site.answers['id-alpha'] = slow
    threads = [threading.Thread(target=first), threading.Thread(target=only_alpha)]
    threads[0].start()
    assert halfway.wait(60)
    threads[1].start()
    output = ''
    while 'waiting for it' not in output and threads[1].is_alive():
        output += capfd.readouterr().out
        time.sleep(0.02)
    asked = len(site.log)
    go_on.set()
    for thread in threads:
        thread.join(60)
    output += capfd.readouterr().out
    assert asked == 1 and 'models/alpha.pt is being downloaded by another process: waiting for it' in output
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert ('already at' in output) == (not first_fails)
    assert site.log[-1] == ('id-alpha', f'bytes={5 * CHUNK}-' if first_fails else None)


@pytest.mark.parametrize('error', [OSError(errno.ENOLCK, 'No locks available'), NotImplementedError('no flock')])
def test_a_disk_without_locks(site, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr('filelock.FileLock.acquire', refuse)
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}


def test_list(site, capsys):
    run('--list')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line, (name, model) in zip(lines, download_models.MODELS.items(), strict=True):
        assert line.startswith(f'{name} ')
        assert model.md5 in line and f'/{model.drive_id}/' in line and model.path in line
    assert site.log == []


def test_process_without_a_network(tmp_path):
    """The command itself: exit code 2 and one line on stderr."""
    mirror = f'http://127.0.0.1:{closed_port()}'
    done = subprocess.run([sys.executable, ROOT / 'download_models.py', '--only', 'sphere_init', '--mirror', mirror],
                          cwd=tmp_path, env=os.environ | {'NO_PROXY': '127.0.0.1'}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f'download_models.py: error: sphere_init: cannot reach {mirror}/sphere_init.pt ')
    assert done.stderr.endswith('\n') and done.stderr.count('\n') == 1


def test_process_that_is_interrupted_keeps_what_came(site, tmp_path):
    """Ctrl-C in mid-transfer: no traceback, and the next run goes on."""
    released = threading.Event()

    def slow(request, fields):
        send(request, BODIES['alpha'], cut=6 * CHUNK)
        request.wfile.flush()
        released.wait(60)
    site.answers['id-alpha'] = slow
    code = ('import download_models as d, utils\n'
            f'd.DRIVE_URL, d.CHUNK = {download_models.DRIVE_URL!r}, {CHUNK}\n'
            f'd.MODELS = {{"alpha": d.Model(*{tuple(download_models.MODELS["alpha"])!r})}}\n'
            'utils.run_command("download_models", d.read_flags)')
    process = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)},
                               stderr=subprocess.PIPE, text=True)
    part = tmp_path / 'models' / 'alpha.pt.part'
    deadline = time.monotonic() + 60
    while (not part.exists() or part.stat().st_size < 5 * CHUNK) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    released.set()
    assert process.returncode == 130 and 'Traceback' not in stderr
    held = part.stat().st_size
    assert held >= 5 * CHUNK and part.read_bytes() == BODIES['alpha'][:held]

    site.answers['id-alpha'] = file(BODIES['alpha'])
    only_alpha()
    assert written() == {'alpha.pt': BODIES['alpha']}
    assert site.log[-1] == ('id-alpha', f'bytes={held}-')
