"""A headless Chromium for tests of pages; without one they skip."""
import contextlib
import shutil

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
SOFTWARE_GL = ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']


@contextlib.contextmanager
def browser_page(own, width, height, offline=False):
    """A page of the given size. It must raise no error, and ask for nothing but addresses that begin with `own`."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright (requirements-test.txt)')
    if CHROMIUM is None:
        pytest.skip('needs Chromium (apt-get install chromium)')
    errors = []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[*SOFTWARE_GL, '--no-sandbox'])
        page = chromium.new_context(viewport={'width': width, 'height': height}, offline=offline).new_page()
        page.on('pageerror', lambda error: errors.append(error))
        page.on('request', lambda request: None if request.url.startswith((own, 'blob:', 'data:'))
                else errors.append(request.url))
        yield page
        chromium.close()
    assert not errors
